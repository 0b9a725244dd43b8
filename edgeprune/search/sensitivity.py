"""Where to cut, by what each group was seen to lose: a few widths of each are measured, then all are chosen together.

A group is cut alone, what is left takes over, batch norm is estimated again, and the loss is taken on a share of the
validation split. That losses add up is assumed; the widths that lose the least within the budgets are found exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprune.pruning.choosing import Chooser
from edgeprune.pruning.held import held_layers
from edgeprune.pruning.knapsack import Curve
from edgeprune.pruning.planner import make_plan
from edgeprune.search.candidate import Budgets, Found
from edgeprune.search.cutter import Cutter
from edgeprune.search.losses import Key, Losses, keys
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy
from edgeprune.search.trainer import Prober

_SHARES = (0.75, 0.5, 0.25, 0.125)  # of a group's units


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """A strategy that goes as `inner` does, with all widths chosen by losses that it measures first."""

    inner: Strategy
    prober: Prober

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.inner.name} by sensitivity"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Measure the dense network's groups, then search.

        Raises:
            BudgetError: as `inner`, and where no widths of those that are known meet a budget; says which one binds.
        """
        step.cutter.allot(self._measured(step))
        return self.inner.search(step, budgets)

    def _measured(self, step: Step) -> Losses:
        """What each group loses at a few widths; told how long it takes, which goes with the number of groups."""
        cutter, started = step.cutter, time.perf_counter()
        chooser = cutter.chooser()
        trials = list(_trials(cutter, chooser))
        step.progress.stage(f"measure what {len(trials)} cuts of single groups lose")
        dense = self.prober.probed(cutter.dense.program.own_module(), settled=True)
        counts = chooser.counts.copy()
        found: dict[Key, dict[int, float]] = {}
        for number, (g, key, count) in enumerate(trials, 1):
            chooser.counts[:] = counts
            chooser.counts[g] = count
            slim, settled = cutter.tried(make_plan(cutter.dense.program, cutter.graph, chooser.kept()))
            rise = self.prober.probed(slim.own_module(), settled) - dense
            found.setdefault(key, {int(counts[g]): 0.0})[count] = rise
            step.progress.advance(number, len(trials), f"{key[0]} at {count} of {int(counts[g])}: loss {rise:+.3f}")
        step.progress.say(f"sensitivity: {len(trials)} cuts measured in {time.perf_counter() - started:.0f} s")
        return {key: Curve(*zip(*sorted(rises.items()), strict=True)) for key, rises in found.items()}


def _trials(cutter: Cutter, chooser: Chooser) -> Iterator[tuple[int, Key, int]]:
    """The number and key of each group that may lose units, at each of a few widths."""
    how, graph = cutter.manner, cutter.graph
    held = held_layers(graph, how.leave, how.layer_ratios).groups
    for g, (group, key) in enumerate(zip(graph.groups, keys(graph), strict=True)):
        if g in held or group.given is not None or (group.is_input and not how.compete):
            continue
        count, step = int(chooser.counts[g]), chooser.steps[g]
        least = max(1, chooser.floors[g])
        widths = {max(round(share * count / step) * step, -(-least // step) * step) for share in _SHARES}
        yield from ((g, key, width) for width in sorted(widths, reverse=True) if width < count)
