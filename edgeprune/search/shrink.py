"""Shrink to stated costs, in as many steps as it takes; where a file is measured, the plan is mended until it holds."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.search.aiming import Trial, aim, hold
from edgeprune.search.candidate import Budgets, Candidate, Found, Gauge
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.schedules import Schedule, Stepwise, legged, legs_left
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun, ended


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
        gauge = step.gauge if budgets.is_measured else None
        targets = Targets(budgets, None if gauge is None else gauge(step.dense.program, True))
        if gauge is not None:
            _aim(step, start, targets, gauge)
        best = down_to_shares(step, budgets, start, targets.shares, self.schedule, competes)
        if gauge is not None:
            best = _held(step, budgets, best, targets, gauge)
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
        n_left = legs_left(costs, best, leg)
        step.record(best, accepted=not reached or step.is_within(best, limit), n_left=n_left)
        if reached:
            break
    return best


def _aim(step: Step, start: Candidate, targets: Targets, gauge: Gauge) -> None:
    """Find the shares to plan for by cuts that are measured and thrown away; weights do not matter here."""

    def trial(shares: Shares) -> Trial:
        step.progress.stage("measure a trial cut")
        return _trial(step, step.trial(start, step.cutter.costs.toward(start, shares)))

    aim(targets, gauge, trial)


def _held(step: Step, budgets: Budgets, best: Candidate, targets: Targets, gauge: Gauge) -> Candidate:
    """The candidate, or one that was shrunk further until what is measured of it holds the budgets."""

    def smaller(shares: Shares) -> Trial:
        nonlocal best
        best = down_to_shares(step, budgets, best, shares, Stepwise())
        return _trial(step, best)

    hold(targets, gauge, _trial(step, best), smaller)
    return best


def _trial(step: Step, candidate: Candidate) -> Trial:
    return Trial(candidate.program, candidate.macs / step.dense.macs)
