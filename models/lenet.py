"""LeNet-300-100, the fully connected network of LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to
Document Recognition, Proc. IEEE 1998, as the pruning literature trains it (Han et al., NeurIPS 2015): with ReLU.
"""

from __future__ import annotations

from torch import nn


def lenet_300_100(n_inputs: int = 784, n_classes: int = 10) -> nn.Module:
    """Two hidden layers of 300 and 100 units: inputs `(batch, ...)` of `n_inputs` values each, logits out."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_inputs, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, n_classes),
    )
