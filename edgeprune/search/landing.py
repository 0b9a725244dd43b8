"""From budgets that are measured to shares that are planned: what a cost model must be asked for to land on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgeprune.cost.activations import in_words
from edgeprune.errors import OutOfReachError
from edgeprune.results import PeakActivations
from edgeprune.search.candidate import Budgets, Measured
from edgeprune.units import size_as_asked

AIM = 0.96  # of a budget: below it, so that the next measurement holds it too
ENOUGH = 0.91  # of a budget: a network that takes less is smaller than it need be
_LEAST = 0.01  # of a cost
_LESS = 0.98  # of what was planned, at most, where that was too much
_ROUNDING = 1e-6  # of a share: what is lost between shares of one network and of another
_ENDS = 2  # points that nobody measured: nothing and all


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of what the dense network costs, by the models of the planner; None where nothing is asked."""

    macs: float | None = None
    latency: float | None = None
    size: float | None = None
    ram: float | None = None

    @property
    def named(self) -> dict[str, float | None]:
        """The share of each cost by its name."""
        return {"macs": self.macs, "latency": self.latency, "size": self.size, "ram": self.ram}

    @property
    def planned(self) -> dict[str, Any]:
        """What `plan` is asked for, by the names of its options."""
        return {
            "keep_macs": self.macs,
            "keep_latency": self.latency,
            "keep_bytes": self.size,
            "keep_activations": self.ram,
        }

    def of_own(self, dense: Callable[[str], float], own: Callable[[str], float], least: float = 0.0) -> Shares:
        """The shares of a network's own costs that come to these of the dense network's: from `least` to all of them.

        Args:
            dense: what the dense network costs, by the cost's name.
            own: what the network costs.
        """
        return Shares(
            **{
                name: None if share is None else min(max(share * dense(name) / own(name), least), 1.0)
                for name, share in self.named.items()
            }
        )


@dataclass(frozen=True, slots=True)
class Goal:
    """One measured budget and what is known of it: `planned` is asked of the model, `points` are `(planned, measured)`.

    All are shares of what the dense network has. Less than `least` cannot be planned, for what is `in_the_way`.
    """

    what: str
    most: float
    planned: float
    points: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))
    least: float = _LEAST
    in_the_way: str = ""

    @property
    def measured(self) -> float:
        """What was measured last."""
        return self.points[-1][1]

    @property
    def is_over(self) -> bool:
        return self.measured > self.most

    @property
    def is_near(self) -> bool:
        """Whether it is within its budget, and not far."""
        return ENOUGH * self.most <= self.measured <= self.most

    def bound(self, times: float, in_the_way: str) -> Goal:
        """At the least that can be planned, which is so many times what is planned now."""
        least = min(self.planned * times * (1 + _ROUNDING), 1.0)
        return replace(self, planned=least, least=least, in_the_way=in_the_way)

    def seen(self, measured: float) -> Goal:
        """With another measurement of what is planned."""
        return replace(self, points=(*self.points, (self.planned, measured)))

    def moved(self) -> Goal:
        """Another plan: on the line through the nearest measurements above and below the aim."""
        aim = AIM * self.most
        # Of plans that come to the same, the nearest to what is on the other side.
        below = max((p for p in self.points if p[1] <= aim), key=lambda p: (p[1], p[0]), default=(0.0, 0.0))
        above = min((p for p in self.points if p[1] > aim), key=lambda p: (p[1], p[0]), default=(1.0, 1.0))
        rise = above[1] - below[1]
        along = (aim - below[1]) / rise if rise > 0 else 0.5
        planned = below[0] + along * (above[0] - below[0])
        if any(abs(planned - p) < 1e-3 for p, _ in self.points):  # the model is coarse here: halve the way
            planned = (below[0] + above[0]) / 2
        return replace(self, planned=min(max(planned, self.least), 1.0))

    def lowered(self) -> Goal:
        """A plan for somewhat less: on the line from all to the least that is over the aim. What is cut stays cut."""
        aim = AIM * self.most
        planned, measured = min((p for p in self.points if p[1] > aim), default=(1.0, 1.0))
        fall = (measured - aim) * (1 - planned) / (1 - measured) if planned < 1 and measured < 1 else planned / 10
        return replace(self, planned=max(min(planned - fall, _LESS * planned), self.least))


class Targets:
    """The goals of one search, brought nearer by measuring."""

    def __init__(self, budgets: Budgets, dense: Measured | None) -> None:
        self.keep_macs = budgets.keep_macs
        self._peak: PeakActivations | None = None if dense is None else dense.peak
        self.goals: dict[str, Goal] = {}
        limit = budgets.max_latency
        if limit is not None and dense is not None:
            most = limit.ratio if limit.ratio is not None else (limit.ms or 0.0) / dense.dense_ms
            self.goals["latency"] = Goal(f"--max-latency {limit}", most, min(AIM * most, 1.0))
        if budgets.max_bytes is not None and dense is not None:
            most = budgets.max_bytes / dense.dense_bytes
            self.goals["size"] = Goal(f"--max-size {size_as_asked(budgets.max_bytes)}", most, min(AIM * most, 1.0))
        if budgets.max_ram is not None and self._peak is not None:
            most = budgets.max_ram / max(self._peak.n_bytes, 1)
            self.goals["ram"] = Goal(f"--max-ram {size_as_asked(budgets.max_ram)}", most, min(max(most, _LEAST), 1.0))

    @property
    def shares(self) -> Shares:
        """What to plan for."""
        planned = {name: goal.planned for name, goal in self.goals.items()}
        return Shares(self.keep_macs, planned.get("latency"), planned.get("size"), planned.get("ram"))

    def bound(self, error: OutOfReachError) -> bool:
        """Plan for the least that can be, where what is planned for a measured budget is below it; False where not."""
        goal = self.goals.get(error.cost)
        if goal is None or goal.planned == 1:
            return False
        self.goals[error.cost] = goal.bound(error.times, error.in_the_way)
        return True

    def settle(self) -> None:
        """Plan for what came nearest to the budgets from within all of them; where nothing was, for what is planned."""
        trials = zip(*(goal.points[_ENDS:] for goal in self.goals.values()), strict=True)
        most = [goal.most for goal in self.goals.values()]
        filled = ([(p[1] / m, p[0]) for p, m in zip(trial, most, strict=True)] for trial in trials)
        held = [trial for trial in filled if all(share <= 1 for share, _ in trial)]
        if held:
            best = max(held, key=lambda trial: max(share for share, _ in trial))
            plans = (planned for _, planned in best)
            self.goals = {n: replace(goal, planned=p) for (n, goal), p in zip(self.goals.items(), plans, strict=True)}

    def begin(self) -> None:
        """Forget what was measured, of another network or otherwise, and keep what is planned."""
        self.goals = {name: replace(goal, points=goal.points[:_ENDS]) for name, goal in self.goals.items()}

    def see(self, measured: Measured) -> None:
        """Take a measurement of the network that the present shares led to."""
        found = {"latency": measured.ms / measured.dense_ms, "size": measured.size_bytes / measured.dense_bytes}
        if measured.peak is not None and measured.dense_peak is not None:
            self._peak = measured.peak
            found["ram"] = measured.peak.n_bytes / max(measured.dense_peak.n_bytes, 1)
        self.goals = {name: goal.seen(found[name]) for name, goal in self.goals.items()}

    def over(self) -> list[Goal]:
        """The budgets that the last measurement misses."""
        return [goal for goal in self.goals.values() if goal.is_over]

    def is_settled(self, macs_share: float) -> bool:
        """Whether every budget holds and one of them binds, or none asks for less than all."""
        if self.over():
            return False
        macs_bind = self.keep_macs is not None and macs_share >= ENOUGH * self.keep_macs
        none_binds = self.keep_macs is None and all(goal.planned == 1 for goal in self.goals.values())
        return macs_bind or none_binds or not self.goals or any(goal.is_near for goal in self.goals.values())

    @property
    def is_hopeless(self) -> bool:
        """Whether a budget is missed by the smallest network that can be planned."""
        return any(goal.planned <= goal.least for goal in self.over())

    def move(self) -> bool:
        """Plan for less of what is over its budget; for more where all are well below. False where that is no other."""
        over, before = bool(self.over()), self.shares
        self.goals = {name: goal.moved() if goal.is_over or not over else goal for name, goal in self.goals.items()}
        return self.shares != before

    def lower(self) -> None:
        """Plan for somewhat less of what is over its budget."""
        self.goals = {name: goal.lowered() if goal.is_over else goal for name, goal in self.goals.items()}

    @property
    def told_peak(self) -> str:
        """What makes the peak of the last network that was measured, where a budget asks for that; else nothing."""
        if "ram" not in self.goals or self._peak is None:
            return ""
        return f" (live activations take {in_words(self._peak)} bytes)"

    def missed(self, macs_share: float) -> str:
        """What is measured of the file, of a network with this share of the MACs, does not come down to its budget."""
        over = "; ".join(f"{goal.what}: {goal.measured / goal.most:.2f} times that" for goal in self.over())
        over += self.told_peak
        told = [f"the closest network, at {macs_share:.1%} of the MACs, has {over}"]
        told += dict.fromkeys(goal.in_the_way for goal in self.over() if goal.in_the_way and goal.planned <= goal.least)
        return f"the budgets cannot be met: {'; '.join(told)}; allow more"
