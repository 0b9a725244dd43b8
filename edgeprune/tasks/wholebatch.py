"""What a loss takes of the whole batch, where several processes each have a part of it.

The parts of a loss are added up by how many samples each has. What it divides by must be that of all samples, then: the
mean of quotients is not the quotient of means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """Of a batch of `n_all` samples, `n_own` of which are here; `summed` adds up over the processes."""

    summed: Callable[[Tensor], Tensor]
    n_own: int
    n_all: int


_here: ContextVar[_Whole | None] = ContextVar("whole_batch", default=None)


@contextmanager
def whole_batch(summed: Callable[[Tensor], Tensor], n_own: int, n_all: int) -> Iterator[None]:
    """Inside, a loss is that of `n_own` of `n_all` samples; the processes all ask for the same things in one order."""
    token = _here.set(_Whole(summed, n_own, n_all))
    try:
        yield
    finally:
        _here.reset(token)


def batch_mean(own: Tensor) -> Tensor:
    """The mean over the whole batch of what is a mean over this process's samples; without gradients.

    In one process it is `own`, as it is.
    """
    whole = _here.get()
    return own.detach() if whole is None else whole.summed(own.detach() * (whole.n_own / whole.n_all))


def batch_count(own: Tensor) -> Tensor:
    """How many there are for as many samples as here, by the whole batch, of what was counted here; at least 1 in it.

    E.g. of 8 samples, 4 of them here, with 10 pixels that count and none here: 5. In one process it is `own`.
    """
    whole = _here.get()
    if whole is None:
        return own.detach().clamp(min=1)
    share = max(whole.n_own, 1) / whole.n_all  # a sample that stands in for none has no weight
    return whole.summed(own.detach() * bool(whole.n_own)).clamp(min=1) * share
