"""Several networks along the front of quality and latency, and which of them is taken."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.records import Metric
from edgeprune.search import refusals
from edgeprune.search.candidate import Budgets, Candidate, Found
from edgeprune.search.landing import Shares
from edgeprune.search.schedules import Schedule, Stepwise
from edgeprune.search.shrink import down_to_shares
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun
from edgeprune.tasks.budget import MaxDrop, is_within


@dataclass(frozen=True, slots=True)
class Front:
    """So many networks of ever less cost, each pruned on from the one before; the last keeps the share `least`.

    The cost is that of the device, where there is one, else MACs; the shares fall evenly, in proportion. From one to
    the next it goes by a schedule.
    """

    count: int
    least: float
    schedule: Schedule = Stepwise()  # noqa: RUF009 - it is frozen

    @property
    def name(self) -> str:
        """What it is called."""
        return "front"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """The networks; fewer, which is told, where nothing smaller can be built.

        Raises:
            BudgetError: not even the first can be built.
        """
        competes = not self.schedule.by_cuts and step.competes(budgets)
        best = begun(step, budgets, competes)
        found: list[Candidate] = []
        for number in range(1, self.count + 1):
            share = self.least ** (number / self.count)
            shares = Shares(latency=share) if step.cutter.manner.device is not None else Shares(macs=share)
            try:
                smaller = down_to_shares(step, budgets, best, shares, self.schedule, competes)
            except BudgetError as error:
                if not found:
                    raise
                step.progress.say(f"{len(found)} networks, not {self.count}: {error}")
                break
            if smaller is not best:
                found.append(smaller)
            best = smaller
        return step.found(*found)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The network of several that is taken; `missed` says that it loses more than it may, None where it does not."""

    network: Candidate
    missed: str | None = None


def chosen(found: Found, metric: Metric, max_drop: MaxDrop, stated: bool) -> Choice:
    """The smallest network that loses at most `max_drop`; where none was looked at, the smallest.

    Args:
        stated: whether the user asked for that drop; where it is assumed, the best network stands in for one within it.

    Raises:
        BudgetError: the drop is stated, and no network is within it.
    """
    smallest, dense = found.networks[-1], found.dense.val_value
    known = [(network, network.val_value) for network in found.networks if network.val_value is not None]
    if dense is None or not known:
        return Choice(smallest)
    drops = [(network, metric.drop(dense, value)) for network, value in known]
    limit = max_drop.limit(metric, dense)
    held = [network for network, drop in drops if is_within(drop, limit)]
    if held:
        return Choice(held[-1])
    best, least = min(drops, key=lambda pair: pair[1])
    text = refusals.none_within(metric, limit, least, best.macs / found.dense.macs)
    if stated:
        raise BudgetError(f"{text}; {refusals.ALLOW_MORE}")
    return Choice(best, f"{text}; it is taken")
