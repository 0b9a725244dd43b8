"""The batch of a network that PyTorch cannot prove to be free: where it is one size, and whether it may be another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves
from torch.utils._sympy.value_ranges import ValueRanges

from edgeprune.errors import CaptureError
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.graph.drawn import drawn_arguments, first_accepted
from edgeprune.graph.refusals import error_on, quiet_torch, refused_batch
from edgeprune.graph.sizes import Free, input_values

_OTHERS = (3, 5)  # odd ones: an example of any size has even multiples
_TOLERANCE = 1e-4  # of the largest output: what a network's outputs differ by from those of its export


@contextmanager
def one_batch(model: nn.Module, free: Free) -> Iterator[None]:
    """Inside, an export knows that the free batches of all inputs are one size."""

    def check(_: nn.Module, given: tuple[Any, ...]) -> None:
        sizes = [leaf.shape[0] for leaf, dims in zip(tree_leaves(given), free, strict=True) if 0 in dims]
        for size in sizes[1:]:
            torch._check(size == sizes[0])

    hook = model.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def check_batches(model: nn.Module, program: ExportedProgram, network: nn.Module, free: Free) -> None:
    """See that a program does what its model does at other batches than the example's; a batch of 1 is allowed then.

    Args:
        model: in eval mode.
        program: traced of it, with a batch that no bound and no condition was seen to fix.
        network: the program as a module.
        free: the sizes that were to be free.

    Raises:
        CaptureError: the model fails on a batch, or gives other outputs than the program.
    """
    bounds = [dims[0] for dims in free if 0 in dims]
    low, high = max(least for least, _ in bounds), min((most for _, most in bounds if most), default=max(_OTHERS))
    for batch in (size for size in _OTHERS if low <= size <= high):
        refusal = _refusal_at(batch, model, program, network)
        if refusal is not None:
            raise refusal
    if low == 1 and _refusal_at(1, model, program, network) is None:
        _allow_one(program, free)


def _refusal_at(batch: int, model: nn.Module, program: ExportedProgram, network: nn.Module) -> CaptureError | None:
    args = first_accepted(model, drawn_arguments(program, batch))
    failure = error_on(model, args)
    if failure is not None:
        return refused_batch(model, batch, failure)
    given = []
    with quiet_torch(), torch.random.fork_rng([]):
        for one in (model, network):
            torch.manual_seed(0)
            given.append(outputs(one, args))
    return None if relative_error(*given) <= _TOLERANCE else refused_batch(model, batch)


def _allow_one(program: ExportedProgram, free: Free) -> None:
    """A traced size is never 1, where it could be broadcast: the program is seen to take it all the same."""
    for value, dims in zip(input_values(program), free, strict=True):
        symbol = value.shape[0].node.expr if 0 in dims else None
        known = program.range_constraints.get(symbol)
        if known is not None:
            program.range_constraints[symbol] = ValueRanges(1, known.upper)
