"""The way from the dense network to the budgets: which shares each step plans for, and files that are measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from edgeprune.cost.macs import macs
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruner.asked import Asked
from edgeprune.pruner.network import Attempt
from edgeprune.pruning.held import own_ratios, unit_counts
from edgeprune.search.aiming import Trial, aim, hold
from edgeprune.search.candidate import Gauge
from edgeprune.search.landing import Goal, Shares, Targets

_NAMES = {"latency": "keep_latency", "size": "max_size", "ram": "max_ram"}


class Course:
    """What is planned for, step by step.

    Budgets in milliseconds and bytes are held by measuring a file: `aim` and `land` find the shares to plan for.
    """

    def __init__(self, asked: Asked, dense: Program, graph: ChannelGraph, gauge: Gauge | None) -> None:
        self._asked, self._gauge = asked, gauge
        self._dense_units = unit_counts(graph, asked.manner.layer_ratios)
        measured = gauge(dense, True) if gauge is not None and asked.budgets.is_measured else None
        self._targets = Targets(asked.budgets, measured)
        goals = self._targets.goals
        self._targets.goals = {name: replace(goal, what=self._called(name)) for name, goal in goals.items()}

    def _called(self, name: str) -> str:
        return f"{_NAMES[name]} {self._asked.given[_NAMES[name]]}"

    @property
    def is_measured(self) -> bool:
        """Whether a budget is held by measuring a file."""
        return bool(self._targets.goals)

    def shares_after(self, step: int) -> Shares:
        """The shares of the dense network's costs that are left after a step; after the last the budgets themselves."""
        final = self._targets.shares

        def left(share: float | None) -> float | None:
            return None if share is None else self._asked.share_after(step, share)

        return Shares(left(final.macs), left(final.latency), left(final.size), left(final.ram))

    def features_after(self, step: int, available: int | None) -> int | None:
        """How many of the input features are left after a step; None where nothing is said of them."""
        wanted = self._asked.budgets.counted(available).n_features
        if wanted is None or available is None:
            return wanted
        return max(wanted, round(available * self._asked.share_after(step, wanted / available)))

    def ratios_after(self, step: int, graph: ChannelGraph) -> dict[str, float]:
        """The shares of a network's units that layers keep after a step, where shares are said of them."""
        after = {name: self._asked.share_after(step, ratio) for name, ratio in self._asked.manner.layer_ratios.items()}
        return own_ratios(after, self._dense_units, graph)

    def aim(self, attempt: Attempt) -> None:
        """Find the shares that come near the measured budgets, by trial cuts of this attempt; BudgetError as `aim`."""
        assert self._gauge is not None
        aim(self._targets, self._gauge, partial(_trial, attempt))

    def land(self, attempt: Attempt) -> None:
        """The same, and go on until what is cut holds them for sure; BudgetError as `hold`."""
        assert self._gauge is not None
        self.aim(attempt)
        trial = partial(_trial, attempt)
        hold(self._targets, self._gauge, trial(self._targets.shares), trial)

    # -- what is kept of it -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The goals as plain values."""
        return {
            name: [goal.what, goal.most, goal.planned, [list(point) for point in goal.points]]
            for name, goal in self._targets.goals.items()
        }

    def restore(self, goals: dict[str, Goal]) -> None:
        """Go on from goals that `goals_of` read."""
        self._targets.goals = goals


def _trial(attempt: Attempt, shares: Shares) -> Trial:
    program = attempt.trial(shares)
    return Trial(program, macs(program) / attempt.dense_costs["macs"])


def goals_of(state: dict[str, Any]) -> dict[str, Goal]:
    """The goals that `Course.state` gave, with all that was measured."""
    return {
        name: Goal(what, float(most), float(planned), tuple((float(a), float(b)) for a, b in points))
        for name, (what, most, planned, points) in state.items()
    }
