"""From a program of a fixed batch to one that takes any."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, capture


def with_dynamic_batch(program: Program, example: torch.Tensor) -> Program:
    """Export a program of fixed batch again with an open one.

    Args:
        program: takes one input, `example`'s shape.
        example: `(batch, ...)` of the fixed batch.

    Raises:
        InputError: it cannot be exported so, or does not do the same then.
    """
    n_fixed = example.shape[0]
    refusal = f"expected a program with a dynamic batch, got a fixed batch of {n_fixed}; export it with a dynamic batch"
    example = torch.linspace(-1, 1, example.numel()).reshape(example.shape).to(example.dtype)
    pair = example.repeat(2, *[1] * (example.dim() - 1))
    try:
        with torch.no_grad():
            before = program.module()(example)
            opened = capture(program.module(), pair)
            after = opened.module()(pair)
    except Exception as error:
        raise InputError(refusal) from error
    pairs = list(zip(tree_leaves(before), tree_leaves(after), strict=True))
    if not all(_twice(one, two) for one, two in pairs):
        raise InputError(refusal)
    return opened


def _twice(one: Any, two: Any) -> bool:
    """Whether `two` `(2 * batch, ...)` repeats `one` `(batch, ...)`."""
    if not (isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and one.dim()):
        return False
    expected = torch.cat([one, one])
    return two.shape == expected.shape and torch.allclose(two, expected, rtol=1e-4, atol=1e-5)
