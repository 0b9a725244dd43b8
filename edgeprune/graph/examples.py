"""Example inputs as an export wants them: a tuple of arguments, no free size of 1."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgeprune.errors import CaptureError
from edgeprune.graph.sizes import Free


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """The positional arguments of a model that are given as a sequence."""
    if isinstance(example_inputs, (list, tuple)):
        return tuple(example_inputs)
    raise CaptureError(
        "example inputs: expected a tensor or a sequence of positional arguments, "
        f"got a {type(example_inputs).__name__}"
    )


def at_least_two(args: tuple[Any, ...], free: Free) -> tuple[Any, ...]:
    """The arguments with a free batch of 1 doubled; other free sizes must be at least 2 already."""
    leaves, tree = tree_flatten(args)
    grown = []
    for leaf, dims in zip(leaves, free, strict=True):
        if 0 in dims and leaf.shape[0] == 1:
            leaf = torch.cat([leaf, leaf])
        for dim in sorted(dims):
            if leaf.shape[dim] < 2:
                raise CaptureError(
                    f"example inputs: expected a size of at least 2 where it is to be free, got 1 for dim {dim} of "
                    f"an input of shape {tuple(leaf.shape)}"
                )
        grown.append(leaf)
    doubled: tuple[Any, ...] = tree_unflatten(grown, tree)
    return doubled


def at_one(args: tuple[Any, ...], free: Free) -> tuple[Any, ...]:
    """The arguments with a batch of one where it is free."""
    leaves, tree = tree_flatten(args)
    single = [leaf[:1] if 0 in dims else leaf for leaf, dims in zip(leaves, free, strict=True)]
    shrunk: tuple[Any, ...] = tree_unflatten(single, tree)
    return shrunk
