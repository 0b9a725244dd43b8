"""Several networks along the front of accuracy and latency, and which of them is taken."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.search.candidate import Budgets, Candidate, Found
from edgeprune.search.landing import Shares
from edgeprune.search.shrink import down_to_shares
from edgeprune.search.step import Step
from edgeprune.search.strategy import begun
from edgeprune.tasks.drop import drop_points, is_within


@dataclass(frozen=True, slots=True)
class Front:
    """So many networks of ever less cost, each pruned on from the one before; the last keeps the share `least`.

    The cost is that of the device, where there is one, else MACs; the shares fall evenly, in proportion.
    """

    count: int
    least: float

    @property
    def name(self) -> str:
        """What it is called."""
        return "front"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """The networks; fewer, which is told, where nothing smaller can be built.

        Raises:
            BudgetError: not even the first can be built.
        """
        best = begun(step, budgets)
        found: list[Candidate] = []
        for number in range(1, self.count + 1):
            share = self.least ** (number / self.count)
            shares = Shares(latency=share) if step.cutter.manner.device is not None else Shares(macs=share)
            try:
                smaller = down_to_shares(step, budgets, best, shares)
            except BudgetError as error:
                if not found:
                    raise
                step.progress.say(f"{len(found)} networks, not {self.count}: {error}")
                break
            if smaller is not best:
                found.append(smaller)
            best = smaller
        return step.found(*found)


def chosen(found: Found, max_drop: float) -> Candidate:
    """The smallest network that loses at most `max_drop` points; the best one where all lose more.

    Without accuracies it is the smallest.
    """
    smallest, dense = found.networks[-1], found.dense.val_accuracy
    known = [(network, network.val_accuracy) for network in found.networks if network.val_accuracy is not None]
    if dense is None or len(known) < len(found.networks) or len(known) == 1:
        return smallest
    held = [network for network, value in known if is_within(drop_points(dense, value), max_drop)]
    return held[-1] if held else max(known, key=lambda pair: pair[1])[0]
