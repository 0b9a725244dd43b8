"""A fully connected network of any widths; its default is the one that inputs are selected for in docs/REPRODUCTION.md.

Hubens et al., Induced Feature Selection by Structured Pruning (arXiv 2303.10999), select the inputs of such networks.
"""

from __future__ import annotations

from torch import nn


def mlp(
    hidden: tuple[int, ...] = (1024, 512),
    n_inputs: int = 784,
    n_classes: int = 10,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
) -> nn.Module:
    """Fully connected layers with ReLU: inputs `(batch, ...)` of `n_inputs` values each, logits out.

    The shares that are dropped in training, of the units and of the inputs, are 0 unless they are given.

    Example:
        --arch "models/mlp.py:mlp?hidden=256,128&n_inputs=64"
    """
    layers: list[nn.Module] = [nn.Flatten()]
    if input_dropout:
        layers.append(nn.Dropout(input_dropout))
    width = n_inputs
    for n_units in hidden:
        layers += [nn.Linear(width, n_units), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = n_units
    return nn.Sequential(*layers, nn.Linear(width, n_classes))
