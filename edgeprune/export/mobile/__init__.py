"""What phones' accelerators would take of a network, by each one's own checker; what no checker says is said so."""
