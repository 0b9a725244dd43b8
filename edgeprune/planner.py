"""The planner: which units go so that the MACs meet the budget and least importance is lost. It touches no weight."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch.export import ExportedProgram

from edgeprune.cost import CostModel
from edgeprune.digests import digest
from edgeprune.errors import BudgetError, InputError, PlanError
from edgeprune.folding import alive, fold, has_zeros
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, analyze
from edgeprune.importance import Batches, protected, score
from edgeprune.pruning_plan import PlannedGroup, PruningPlan
from edgeprune.records import FeatureRules, InputFeatures
from edgeprune.surgery import input_features


def plan(  # noqa: PLR0913 - the public call: every choice has a name and a default
    program: ExportedProgram,
    graph: ChannelGraph,
    keep_macs: float | None = 0.5,
    criterion: str = "l2",
    align: int = 8,
    exact_only: bool = False,
    *,
    n_features: int | None = None,
    batches: Batches = (),
    seed: int = 0,
) -> PruningPlan:
    """Choose the units to keep: globally over all groups, least important first, until the MACs are within budget.

    Args:
        program: the program that `graph` was made from.
        graph: its channel groups; with `inputs=True` input features are chosen too.
        keep_macs: largest share of the MACs to keep, in (0, 1]; None prunes no channels.
        criterion: one of the catalog's (`edgeprune methods`); "taylor" and "activation" need `batches`.
        align: kept widths are multiples of this where the layer is at least as wide; 1 for any width.
        exact_only: leave units alone whose removal changes the statistics of a normalisation.
        n_features: how many input features to keep at most: exactly so many where they go one by one; None lets them
            compete with the channels.
        batches: normalised inputs and class numbers, for the criteria that look at data.
        seed: for "random".

    Raises:
        InputError: a number is out of range.
        BudgetError: the budget cannot be met; says which groups stood in the way.
    """
    if keep_macs is not None and not 0 < keep_macs <= 1:
        raise InputError(f"keep_macs: expected a share in (0, 1], got {keep_macs}")
    if align < 1:
        raise InputError(f"align: expected a whole number from 1, got {align}")
    scores = score(program, graph, criterion, batches=batches, seed=seed)
    chooser = _Chooser(program, graph, scores, per_mac=criterion == "taylor", align=align)
    if n_features is not None:
        chooser.keep_features(n_features)
    if keep_macs is not None:
        chooser.prune_to(keep_macs, exact_only=exact_only, features=n_features is None)
    return make_plan(program, graph, chooser.kept())


class _Chooser:
    """How many units of each group stay; the lowest scores go first within a group."""

    def __init__(
        self,
        program: ExportedProgram,
        graph: ChannelGraph,
        scores: Sequence[np.ndarray],
        *,
        per_mac: bool,
        align: int,
    ) -> None:
        self.graph = graph
        self.counts = np.array([group.n_units for group in graph.groups], dtype=float)
        _, self.sizes = graph.features()
        last = protected(graph, scores)
        self.floors = [int(own.sum()) for own in last]
        worth = [s / sizes.clip(min=1) for s, sizes in zip(scores, self.sizes, strict=True)]  # of a feature
        self.orders = [np.lexsort(keys) for keys in zip(worth, last, strict=True)]
        self.cost = CostModel(program, graph, self.orders)
        self.sums = [np.concatenate([[0.0], np.cumsum(s[o])]) for s, o in zip(scores, self.orders, strict=True)]
        self.per_mac = per_mac
        self.steps = [_step(group, align) for group in graph.groups]

    def kept(self) -> np.ndarray:
        """Bool `(n_labels,)`: which units stay."""
        keep = np.ones(len(self.graph.analysis.solver.canonical), dtype=bool)
        for group, order, count in zip(self.graph.groups, self.orders, self.counts, strict=True):
            keep[group.units[order[: group.n_units - int(count)]]] = False
        return keep

    def keep_features(self, n_features: int) -> None:
        """Keep at most this many input features, the most important ones over all inputs."""
        inputs = [g for g, group in enumerate(self.graph.groups) if group.is_input]
        if not inputs:
            raise InputError("input features: the network has none that can be removed; see `edgeprune inspect`")
        left, _ = self.graph.features()
        last = (self.sizes[g][self.orders[g]][len(self.orders[g]) - self.floors[g] :] for g in inputs)
        least = left + sum(int(sizes.sum()) for sizes in last)
        left += sum(int(self.sizes[g].sum()) for g in inputs)
        if not least <= n_features <= left:
            raise InputError(f"input features: expected to keep {least} to {left}, got {n_features}")
        while left > n_features:
            removable = (g for g in inputs if self.counts[g] > self.floors[g])
            weakest = min(removable, key=lambda g: self._lost(g, 1) / self._next_size(g))
            left -= self._next_size(weakest)
            self.counts[weakest] -= 1

    def _next_size(self, group: int) -> int:
        """How many features the next unit of a group has."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return int(self.sizes[group][self.orders[group][removed]])

    def prune_to(self, keep_macs: float, *, exact_only: bool, features: bool) -> None:
        """Remove the cheapest aligned chunk, again and again, until the MACs are within the budget.

        A chunk's price only rises while others go (it saves less, and less is left to save), so a stale entry of the
        heap is re-examined when it comes up.
        """
        budget = keep_macs * self.cost.total
        left = self.cost.macs(self.counts)
        eligible = [
            g for g, group in enumerate(self.graph.groups)
            if (group.exact or not exact_only) and (features or not group.is_input)
        ]  # fmt: skip
        heap = [entry for g in eligible if (entry := self._entry(g, left - budget)) is not None]
        heapq.heapify(heap)
        while left > budget:
            if not heap:
                raise BudgetError(self._in_the_way(keep_macs, left))
            _, group = heapq.heappop(heap)
            fresh = self._entry(group, left - budget)
            if fresh is None:
                continue
            if heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            chunk = self._chunk(group)
            left -= self.cost.saving(self.counts, group, chunk)
            self.counts[group] -= chunk
            following = self._entry(group, left - budget)
            if following is not None and left > budget:
                heapq.heappush(heap, following)

    def _entry(self, group: int, excess: float) -> tuple[float, int] | None:
        """Price of the next chunk of a group, and the group; None where nothing more can go or nothing is saved.

        Saving more than the `excess` MACs over the budget counts for nothing.
        """
        chunk = self._chunk(group)
        if chunk == 0:
            return None
        if not self.cost.touching[group]:
            return None
        saving = max(self.cost.saving(self.counts, group, chunk), 1.0)
        useful = max(min(saving, excess), 1.0)
        return self._lost(group, chunk) / (useful if self.per_mac else chunk * useful / saving), group

    def _lost(self, group: int, chunk: int) -> float:
        """Importance of the next `chunk` units of a group."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return float(self.sums[group][removed + chunk] - self.sums[group][removed])

    def _chunk(self, group: int) -> int:
        """How many units to remove to come to the next lower aligned width; 0 at the last one."""
        count, step = int(self.counts[group]), self.steps[group]
        lower = (count - 1) // step * step
        return count - lower if lower >= self.floors[group] else 0

    def _in_the_way(self, keep_macs: float, left: float) -> str:
        costs = ((self._share(g), group.name) for g, group in enumerate(self.graph.groups))
        held = ", ".join(name for _, name in sorted(costs, reverse=True)[:4]) or "none"
        locked = sorted({f"{lock.name} ({lock.reason})" for lock in self.graph.locked if lock.dim == 0})
        message = (
            f"{keep_macs:.3g} of the MACs cannot be met: expected at most {keep_macs * self.cost.total:.0f}, "
            f"got no lower than {left:.0f}; in the way: groups at their least width ({held})"
        )
        if locked:
            more = f" and {len(locked) - 4} more" if len(locked) > 4 else ""
            message += f"; locked: {', '.join(locked[:4])}{more}"
        return message + "; a lower --align may help"

    def _share(self, group: int) -> float:
        return sum(self.cost.products[i].macs(self.counts) for i in self.cost.touching[group])


def plan_dead(
    program: ExportedProgram, inputs: bool = False, attention: str = "heads", rules: FeatureRules | None = None
) -> PruningPlan | None:
    """The plan that removes exactly the units that have no influence on an output, or None where all have.

    Constants that units give are folded into what reads them first, see `fold`; a cut by this plan gives the same
    outputs as the dense network does, up to rounding. One unit of every dim stays.

    Args:
        program: as `capture` returns it.
        inputs: whether input features that nothing reads go too.
        attention: "heads" or "head-dim", as in `analyze`.
        rules: input features that stay all the same, as in `analyze`.
    """
    if not has_zeros(program):
        return None
    folded = fold(program)
    graph = analyze(folded, inputs=inputs, attention=attention, rules=rules)
    keep = alive(graph)
    matters = [keep[group.units].astype(float) for group in graph.groups]
    for group, last in zip(graph.groups, protected(graph, matters), strict=True):
        keep[group.units[last]] = True
    if keep.all():
        return None
    return replace(make_plan(folded, graph, keep), source_sha256=digest(program), folded=True)


def _step(group: ChannelGroup, align: int) -> int:
    """Units to remove at a time so that the width stays a multiple of `align`; narrow layers are not held to it."""
    if group.is_input:
        return 1
    per_unit = group.indices_per_unit
    step = align // math.gcd(align, per_unit)
    return step if group.n_units >= step else 1


def make_plan(program: ExportedProgram, graph: ChannelGraph, keep: np.ndarray) -> PruningPlan:
    """The plan that keeps the units marked in `keep`, bool `(n_labels,)`.

    Raises:
        PlanError: nothing would be left of some tensor.
    """
    canonical = graph.analysis.solver.canonical
    tensors: dict[str, dict[int, tuple[int, ...]]] = {}
    for (kind, name, dim), source in graph.analysis.sources.items():
        if kind != "tensor" or dim is None:
            continue
        mask = keep[canonical[source.ids]]
        if not mask.any():
            raise PlanError(f"nothing would be left of dim {dim} of {name!r}: expected at least one index")
        if not mask.all():
            for alias in graph.analysis.tensors.aliases(name) or [name]:
                tensors.setdefault(alias, {})[dim] = tuple(np.flatnonzero(mask).tolist())
    inputs: dict[str, InputFeatures] = {}
    for kind, name, _ in graph.analysis.sources:
        features = input_features(graph, name, keep) if kind == "input" else None
        if features is not None and len(features.keep) < features.size:
            inputs[name] = features
    groups = tuple(
        PlannedGroup(group.name, group.n_units, int(keep[group.units].sum()), group.exact) for group in graph.groups
    )
    return PruningPlan(digest(program), tensors, inputs, groups, graph.analysis.attention)
