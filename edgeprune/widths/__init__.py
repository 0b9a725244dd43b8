"""One network at several widths: units in the order of importance, nested widths, one training, one file of weights."""
