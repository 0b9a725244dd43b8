"""Federated sparse training (FedDST): clients train on data of their own, and send weights and masks alone."""
