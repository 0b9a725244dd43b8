"""The way down where no cost is stated: ever smaller networks, for as long as the quality holds and a step pays."""

from __future__ import annotations

from edgeprune.errors import BudgetError
from edgeprune.search.attempts import AGAIN, PATIENCE, smaller_step, while_it_holds
from edgeprune.search.candidate import Budgets, Candidate, Found
from edgeprune.search.effort import Effort
from edgeprune.search.landing import Shares
from edgeprune.search.step import FACTOR, Step
from edgeprune.search.strategy import begun, ended
from edgeprune.search.trainer import Round

_BOLD = 0.5  # share of the MACs that one step keeps where every step is a finetuning
_LEAST_GAIN = 0.05  # of the MACs: what a step saves at least, to be worth a finetuning


class Descent:
    """Shrinks until nothing smaller holds, nothing smaller can be built, or the training allowed is used up."""

    @property
    def name(self) -> str:
        """What it is called."""
        return "descent"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """The smallest network found within the drop.

        Raises:
            BudgetError: none was found.
        """
        start, limit = begun(step, budgets), step.limit(budgets.max_drop)
        if step.trains:
            best = _smallest_that_holds(step, limit, start)
        else:
            best = while_it_holds(step, start, lambda last, by: _next(step, last, by), limit, FACTOR)
        return ended(step, budgets, best)


def _smallest_that_holds(step: Step, limit: float | None, start: Candidate) -> Candidate:
    """The smallest of those on the way down, and of those that missed by chance once they are trained longer."""
    best, missed = _way_down(step, limit, start)
    for candidate in sorted(missed, key=lambda one: (step.drop(one), -one.macs)):
        if candidate.macs < best.macs and step.effort.affords(AGAIN):
            again = step.finetuned(candidate, Round(1))
            held = step.is_within(again, limit)
            step.record(again, held)
            best = again if held else best
    if not step.effort.affords(1):
        step.progress.say(_stopped(step.effort))
    return best


def _way_down(step: Step, limit: float | None, start: Candidate) -> tuple[Candidate, list[Candidate]]:
    """The smallest network that held, and those that missed by no more than chance.

    On a small validation split a drop is known to a sample or two only: what missed by so little is pruned on, and its
    successor may well hold. What missed by more ends the way, or is tried again with a smaller step where nothing
    missed by less. Enough of the training allowed is left to finetune one of those once more.
    """
    best = last = start
    missed: list[Candidate] = []
    factor, failures = _BOLD, 0
    while failures <= PATIENCE and step.effort.affords(1 + (AGAIN if missed else 0)):
        candidate = _next(step, last, factor)
        if candidate is None:
            break
        held = step.is_within(candidate, limit)
        step.record(candidate, held)
        if held:
            best = last = candidate
            missed.clear()
        elif step.may_be_chance(candidate, limit or 0.0):
            missed.append(candidate)
            last = candidate
        elif missed:
            break
        else:
            failures += 1
            factor = smaller_step(factor)
    return best, missed


def _next(step: Step, best: Candidate, ratio: float) -> Candidate | None:
    """The next smaller network, or None where nothing smaller can be built that is worth a finetuning."""
    least = 1 if step.effort.is_free else _LEAST_GAIN * best.macs
    try:
        while step.has_failed(best, Shares(macs=ratio)):
            ratio = smaller_step(ratio)  # the same widths lose as much again
            if (1 - ratio) * best.macs < 1:
                return None
        fresh = step.pruned(best, Shares(macs=ratio))
    except BudgetError:
        return None
    return step.finetuned(fresh) if best.macs - fresh.macs >= least else None


def _stopped(effort: Effort) -> str:
    return (
        f"the search ends after {effort.spent:.0f} finetunings' worth of training; a smaller network may be "
        f"found with more than --max-finetunings {effort.most}"
    )
