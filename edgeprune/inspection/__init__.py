"""What `edgeprune inspect` shows: the channel groups as a table, and the network as a drawing."""
