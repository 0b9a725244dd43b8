"""What the measuring scripts share: the list of networks, one network's measurements, the documents."""
