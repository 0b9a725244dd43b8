"""Reconstruction: after a cut, what is left learns by least squares to give what the dense network's layers gave."""
