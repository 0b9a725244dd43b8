"""Erdős-Rényi-Kernel densities: how sparse each layer is where the whole network is to be so sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def densities(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The share of each layer's weights that is in, in (0, 1], so that `1 - sparsity` of all are.

    A layer's is in proportion to the sum of its dims over their product (Evci et al., Rigging the Lottery, ICML 2020,
    after Mocanu et al., 2018), at most 1. Example: of `{"a": (300, 784), "b": (10, 100)}` at 0.8 the small b is dense.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    left = (1 - sparsity) * sum(sizes.values())
    dense: dict[str, float] = {}
    found = _in_proportion(shapes, left)
    while full := {name: sizes[name] for name, density in found.items() if density >= 1}:
        dense |= dict.fromkeys(full, 1.0)
        left -= sum(full.values())
        found = _in_proportion({name: shape for name, shape in shapes.items() if name not in dense}, max(0.0, left))
    return {**dense, **found}


def _in_proportion(shapes: Shapes, n_kept: float) -> dict[str, float]:
    """The densities at which so many weights are in, also above 1."""
    total = sum(sum(shape) for shape in shapes.values())
    return {name: n_kept / total * sum(shape) / math.prod(shape) for name, shape in shapes.items()}


def random_masks(shapes: Shapes, sparsity: float, seed: int) -> dict[str, Tensor]:
    """Which weights are in at first, bool and shaped as the layers: so many of each, at random places, at least one."""
    draws = torch.Generator().manual_seed(seed)
    found = {}
    for name, density in densities(shapes, sparsity).items():
        size = math.prod(shapes[name])
        n_kept = min(size, max(1, round(density * size)))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[torch.randperm(size, generator=draws)[:n_kept]] = True
        found[name] = mask.view(shapes[name])
    return found
