"""Shrink to stated costs, in as many steps as it takes; where a file is measured, the plan is mended until it holds."""

from __future__ import annotations

from edgeprune.errors import BudgetError
from edgeprune.search import refusals
from edgeprune.search.candidate import Budgets, Candidate, Found, Measured
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun, ended

_TRIALS = 6  # cuts that are measured to land on a budget


class Shrink:
    """The network that costs what it may, by MACs, by its time and size as a file, or by all of them."""

    @property
    def name(self) -> str:
        """What it is called."""
        return "shrink"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Shrink to what the network may cost.

        Raises:
            BudgetError: the costs cannot be reached, or not within the drop.
        """
        start = begun(step, budgets)
        targets = Targets(budgets, step.measured(step.dense) if budgets.is_measured else None)
        _aim(step, start, targets)
        best = down_to_shares(step, budgets, start, targets.shares, competes=step.competes(budgets))
        for _ in range(_TRIALS):
            if not targets.goals:
                break
            targets.see(_measured(step, best))
            if not targets.over():
                break
            targets.move()
            best = down_to_shares(step, budgets, best, targets.shares)
        else:
            raise BudgetError(refusals.not_met(step, targets, best))
        return ended(step, budgets, best)


def down_to_shares(step: Step, budgets: Budgets, start: Candidate, shares: Shares, competes: bool = False) -> Candidate:
    """Shrink in steps to shares of the dense network's costs; the drop is judged there, not on the way.

    Where features and channels compete, the first step is a training that takes both, all the way down.
    """
    best, limit, costs = start, step.limit(budgets.max_drop), step.cutter.costs
    while best.plan is None or costs.is_over(best, shares):
        if competes:
            best, competes = step.competed(best, costs.toward(best, shares)), False
        else:
            best = step.tried(best, costs.toward(best, shares, step.least_share))
        reached = not costs.is_over(best, shares)
        if reached:
            best = step.rescued(best, limit)
        step.record(best, accepted=not reached or step.is_within(best, limit))
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
