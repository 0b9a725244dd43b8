"""Two networks that should compute the same: their outputs, and how far these may be apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# Largest relative difference that rounding explains.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def outputs(network: Callable[..., Any], args: Sequence[Any]) -> list[Tensor]:
    """All output tensors of a network, in the order of its output tree."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*args)) if isinstance(leaf, Tensor)]


def relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to the largest number expected of it.

    Infinite where the numbers of outputs or their shapes differ, or what is got is not finite.
    """
    if [a.shape for a in expected] != [b.shape for b in got]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.numel() == 0:
            continue
        scale, difference = float(a.abs().max()), float((a.double() - b.double()).abs().max())
        relative = difference / scale if scale > 0 else difference
        if not torch.isfinite(b).all() or relative != relative:
            return float("inf")
        worst = max(worst, relative)
    return worst
