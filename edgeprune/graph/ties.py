"""Free sizes of one input that an export takes for one size, because the example's are equal.

Where a network asks whether its height is its width, a square example answers yes, and the program holds for squares
alone without a word. Another example tells what the network does with both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgeprune.graph.sizes import Free, Range, another_size, input_values


def without_ties(program: ExportedProgram, args: tuple[Any, ...], free: Free) -> tuple[Any, ...] | None:
    """Example arguments whose sizes differ where a program takes two of one input for one; None where it does not."""
    leaves, tree = tree_flatten(args)
    tied = list(_tied(input_values(program), free))
    for leaf, dim in tied:
        other = another_size(leaves[leaf].shape[dim], free[leaf][dim])
        places = torch.arange(other) % leaves[leaf].shape[dim]
        leaves[leaf] = leaves[leaf].index_select(dim, places.to(leaves[leaf].device))
    found: tuple[Any, ...] = tree_unflatten(leaves, tree)
    return found if tied else None


def _tied(values: Sequence[Any], free: Sequence[Mapping[int, Range]]) -> Iterator[tuple[int, int]]:
    """Leaf and dim of each free size that is called as one before it of the same input, apart from the batch."""
    for leaf, (value, dims) in enumerate(zip(values, free, strict=True)):
        seen: set[Any] = set()
        for dim in sorted(set(dims) - {0}) if isinstance(value, Tensor) else ():
            size = value.shape[dim]
            if isinstance(size, torch.SymInt) and size.node.expr in seen:
                yield leaf, dim
            seen.add(size.node.expr if isinstance(size, torch.SymInt) else size)
