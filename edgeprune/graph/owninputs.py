"""Networks may write to what they are given: arguments in memory of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def own_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the arguments: what is written to one tensor is seen in no other, not even in one given twice."""
    copied: tuple[Any, ...] = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, args)
    return copied
