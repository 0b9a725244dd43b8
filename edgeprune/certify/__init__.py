"""Certificates: bounds on what a network can answer anywhere in a box of inputs, and attacks that show what it does."""
