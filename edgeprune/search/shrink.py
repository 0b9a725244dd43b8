"""Shrink to stated costs, in as many steps as it takes; where a file is measured, the plan is mended until it holds."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.search import refusals
from edgeprune.search.candidate import Budgets, Candidate, Found, Measured
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.schedules import Schedule, Stepwise, legged
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun, ended

_TRIALS = 6  # cuts that are measured to land on a budget


@dataclass(frozen=True, slots=True)
class Shrink:
    """The network that costs what it may, by MACs, by its time and size as a file, or by all of them.

    It comes down by a schedule; what is measured over a budget then goes in further cuts.
    """

    schedule: Schedule = Stepwise()  # noqa: RUF009 - it is frozen

    @property
    def name(self) -> str:
        """What it is called."""
        return "shrink"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Shrink to what the network may cost.

        Raises:
            BudgetError: the costs cannot be reached, or not within the drop.
        """
        competes = not self.schedule.by_cuts and step.competes(budgets)
        start = begun(step, budgets, competes)
        targets = Targets(budgets, step.measured(step.dense) if budgets.is_measured else None)
        _aim(step, start, targets)
        best = down_to_shares(step, budgets, start, targets.shares, self.schedule, competes)
        for _ in range(_TRIALS):
            if not targets.goals:
                break
            targets.see(_measured(step, best))
            if not targets.over():
                break
            targets.move()
            best = down_to_shares(step, budgets, best, targets.shares, Stepwise())
        else:
            raise BudgetError(refusals.not_met(step, targets, best))
        return ended(step, budgets, best)


def down_to_shares(  # noqa: PLR0913 - from where, to where and how
    step: Step, budgets: Budgets, start: Candidate, shares: Shares, schedule: Schedule, competes: bool = False
) -> Candidate:
    """Shrink by a schedule to shares of the dense network's costs; the drop is judged there, not on the way.

    Where features and channels compete, the first step is a training that takes both, all the way down.
    """
    best, limit, costs = start, step.limit(budgets.max_drop), step.cutter.costs
    if best.plan is not None and not costs.is_over(best, shares):
        return best
    for leg in schedule.legs(costs, start, shares):
        smaller = step.competed(best, costs.toward(best, shares)) if competes else legged(step, best, leg)
        competes = False
        if smaller is None:
            continue
        best, reached = smaller, leg.may_end and not costs.is_over(smaller, shares)
        if reached:
            best = step.rescued(best, limit)
        step.record(best, accepted=not reached or step.is_within(best, limit))
        if reached:
            break
    return best


def _aim(step: Step, start: Candidate, targets: Targets) -> None:
    """Find the shares to plan for by cuts that are measured and thrown away; weights do not matter here."""
    if not targets.goals:
        return
    for trial in range(_TRIALS):
        step.progress.stage(f"measure a trial cut ({trial + 1})")
        try:
            candidate = step.cutter.trial(start, step.cutter.costs.toward(start, targets.shares))
        except BudgetError as error:
            raise BudgetError(f"{', '.join(goal.what for goal in targets.goals.values())}: {error}") from error
        targets.see(_measured(step, candidate, surely=False))
        if targets.is_settled(candidate.macs / step.dense.macs):
            return
        if targets.is_hopeless:
            raise BudgetError(refusals.not_met(step, targets, candidate))
        targets.move()
    targets.settle()


def _measured(step: Step, candidate: Candidate, surely: bool = True) -> Measured:
    measured = step.measured(candidate, surely)
    assert measured is not None  # there are goals only where the dense network was measured
    return measured
