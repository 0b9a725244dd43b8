"""Trial cuts that are measured until what is planned lands on the budgets; networks of the same widths but once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.graph.capture import Program
from edgeprune.search.candidate import Gauge, Measured
from edgeprune.search.landing import Shares, Targets

_TRIALS = 10
_Widths = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A network that was cut to some shares, and its share of the dense network's MACs."""

    program: Program
    macs_share: float


def aim(targets: Targets, gauge: Gauge, attempt: Callable[[Shares], Trial]) -> None:
    """Plan for the shares whose network is near the budgets, from within; for the nearest where none comes near.

    Raises:
        BudgetError: the least that can be planned for misses a budget.
    """
    targets.begin()
    known: dict[_Widths, Measured] = {}
    for _ in range(_TRIALS):
        trial = _tried(targets, attempt)
        _see(targets, trial, known, lambda program: gauge(program, False))
        if targets.is_settled(trial.macs_share):
            return
        if targets.is_hopeless:
            raise BudgetError(targets.missed(trial.macs_share))
        if not targets.move():
            break
    targets.settle()


def hold(targets: Targets, gauge: Gauge, trial: Trial, attempt: Callable[[Shares], Trial]) -> None:
    """Measure what was cut, surely, and plan for less until the budgets are held.

    Raises:
        BudgetError: no network holds them; says how near the last one came.
    """
    targets.begin()  # what was measured once does not count beside what is sure
    known: dict[_Widths, Measured] = {}
    for left in reversed(range(_TRIALS)):
        _see(targets, trial, known, lambda program: gauge(program, True))
        if not targets.over():
            return
        if not left or targets.is_hopeless:
            break
        targets.lower()
        trial = _tried(targets, attempt)
    raise BudgetError(targets.missed(trial.macs_share))


def _tried(targets: Targets, attempt: Callable[[Shares], Trial]) -> Trial:
    try:
        return attempt(targets.shares)
    except BudgetError as error:
        detail = f"{error.detail}{targets.told_peak}"
        raise BudgetError(f"{targets.asked} cannot be met by what is planned for: {detail}", detail) from error


def _see(
    targets: Targets, trial: Trial, known: dict[_Widths, Measured], measure: Callable[[Program], Measured]
) -> None:
    """Tell the targets what a network takes; one of widths that were measured takes the same."""
    widths = frozenset((name, tuple(tensor.shape)) for name, tensor in trial.program.state_dict.items())
    if widths not in known:
        known[widths] = measure(trial.program)
    targets.see(known[widths])
