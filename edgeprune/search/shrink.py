"""Shrink to stated costs, in as many steps as it takes; where a file is measured, the plan is mended until it holds."""

from __future__ import annotations

from edgeprune.search.aiming import Trial, aim, hold
from edgeprune.search.candidate import Budgets, Candidate, Found, Gauge
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun, ended


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
        gauge = step.gauge if budgets.is_measured else None
        targets = Targets(budgets, None if gauge is None else gauge(step.dense.program, True))
        if gauge is not None:
            _aim(step, start, targets, gauge)
        best = down_to_shares(step, budgets, start, targets.shares, competes=step.competes(budgets))
        if gauge is not None:
            best = _held(step, budgets, best, targets, gauge)
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


def _aim(step: Step, start: Candidate, targets: Targets, gauge: Gauge) -> None:
    """Find the shares to plan for by cuts that are measured and thrown away; weights do not matter here."""
    cutter = step.cutter

    def trial(shares: Shares) -> Trial:
        step.progress.stage("measure a trial cut")
        return _trial(step, cutter.trial(start, cutter.costs.toward(start, shares)))

    aim(targets, gauge, trial)


def _held(step: Step, budgets: Budgets, best: Candidate, targets: Targets, gauge: Gauge) -> Candidate:
    """The candidate, or one that was shrunk further until what is measured of it holds the budgets."""

    def smaller(shares: Shares) -> Trial:
        nonlocal best
        best = down_to_shares(step, budgets, best, shares)
        return _trial(step, best)

    hold(targets, gauge, _trial(step, best), smaller)
    return best


def _trial(step: Step, candidate: Candidate) -> Trial:
    return Trial(candidate.program, candidate.macs / step.dense.macs)
