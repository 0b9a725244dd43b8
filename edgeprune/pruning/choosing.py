"""Which units go: the least important first, over all groups, until every cost is within its limit."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils._pytree import tree_leaves

from edgeprune.cost.limits import Limit
from edgeprune.cost.models import CostModel
from edgeprune.cost.widths import Alignment
from edgeprune.errors import InputError, OutOfReachError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.labels import core
from edgeprune.importance import check_count, kept_features, protected
from edgeprune.pruning.own_forward import even_step, evened

_NOTHING = 1e-9  # of a cost: what a chunk counts that saves nothing by itself


class Chooser:
    """How many units of each group stay; the lowest scores go first within a group."""

    def __init__(
        self, graph: ChannelGraph, scores: Sequence[np.ndarray], alignment: Alignment, even: bool = False
    ) -> None:
        self.graph = graph
        self.counts = np.array([group.n_units for group in graph.groups], dtype=float)
        _, sizes = graph.features()
        last = protected(graph, scores)
        self.floors = [int(own.sum()) for own in last]
        self.scores = scores
        self.worth = [s / own.clip(min=1) for s, own in zip(scores, sizes, strict=True)]  # of a feature
        self.orders = [np.lexsort(keys) for keys in zip(self.worth, last, strict=True)]
        self.steps = [alignment.step(group) for group in graph.groups]
        self.parts = [1] * len(graph.groups)  # units that go together
        for g, group in enumerate(graph.groups):
            if group.given is not None:
                self.orders[g], self.counts[g] = np.argsort(group.given, kind="stable"), group.given.sum()
        for g in range(len(graph.groups)) if even else ():
            self._even(g, self.worth[g])
        self.sums = [_summed(s, order) for s, order in zip(scores, self.orders, strict=True)]

    def _even(self, g: int, worth: np.ndarray) -> None:
        """Let the parts of a call lose as many units each."""
        even = evened(self.graph, g, self.orders[g], worth, self.floors[g])
        if even is not None:
            self.orders[g], self.floors[g] = even.order, even.floor
            self.steps[g] = even_step(self.steps[g], even.n_parts, len(even.order))
            self.parts[g] = even.n_parts

    def hold(self, shares: Mapping[int, float]) -> None:
        """Keep these shares of the units of groups, to the nearest unit, whatever the alignment."""
        for g, share in shares.items():
            parts, n_units = self.parts[g], self.graph.groups[g].n_units
            self.counts[g] = max(self.floors[g], int(share * n_units / parts + 0.5) * parts)

    def kept(self) -> np.ndarray:
        """Bool `(n_labels,)`: which units stay."""
        keep = np.ones(len(self.graph.analysis.solver.canonical), dtype=bool)
        for group, own in zip(self.graph.groups, self._present(), strict=True):
            keep[group.units[~own]] = False
        return keep

    def keep_features(self, n_features: int) -> None:
        """Keep at most this many input features, the most important ones over all inputs, as many as fit."""
        inputs = [g for g, group in enumerate(self.graph.groups) if group.is_input]
        if not inputs:
            raise InputError("input features: the network has none that can be removed; see `edgeprune inspect`")
        check_count(self.graph, n_features, "input features")
        stays, last = kept_features(self.graph, self.worth, self._present(), n_features)
        for g in inputs:
            order = self.orders[g]
            self.orders[g] = order[np.lexsort((last[g][order], stays[g][order]))]  # lexsort leaves equals as they are
            self.counts[g], self.floors[g] = stays[g].sum(), int(last[g].sum())
            self.sums[g] = _summed(self.scores[g], self.orders[g])

    def _present(self) -> list[np.ndarray]:
        """Bool `(n_units,)` for each group: the units that stay at the present widths."""
        found = []
        for order, count in zip(self.orders, self.counts, strict=True):
            own = np.ones(len(order), dtype=bool)
            own[order[: len(order) - int(count)]] = False
            found.append(own)
        return found

    def lost(self, group: int, chunk: int) -> float:
        """Importance of the next `chunk` units of a group."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return float(self.sums[group][removed + chunk] - self.sums[group][removed])

    def left(self, group: int) -> float:
        """Importance of all units that a group has left."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return float(self.sums[group][-1] - self.sums[group][removed])

    def chunk(self, group: int) -> int:
        """How many units to remove to come to the next lower aligned width; 0 at the last one."""
        count, step = int(self.counts[group]), self.steps[group]
        lower = (count - 1) // step * step
        return count - lower if lower >= self.floors[group] else 0


def _summed(scores: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`(n_units + 1,)`: what the first units of an order are worth together."""
    return np.concatenate([[0.0], np.cumsum(scores[order])])


class Pruning:
    """Removes the cheapest aligned chunk, again and again, until every cost is within its limit.

    A chunk's price only rises while others go (it saves less, and less is left to save), so a stale entry of the heap
    is re-examined when it comes up.
    """

    def __init__(
        self,
        chooser: Chooser,
        limits: Sequence[Limit],
        saved: CostModel | None,
        by_saving: bool,
        eligible: Sequence[int],
    ) -> None:
        self.chooser = chooser
        self.limits = limits
        self.saved = saved
        self.by_saving = by_saving
        self.by_share = saved is not None and all(limit.model is saved for limit in limits)
        self.left = [limit.model.cost(chooser.counts) for limit in limits]
        self.eligible = eligible

    def run(self, features: bool) -> None:
        """Remove channels, and input features where they compete; else those alone that are channels, at the last.

        Raises:
            OutOfReachError: a cost is over its limit when nothing is left that can go.
        """
        groups = self.chooser.graph.groups
        inputs = [g for g in self.eligible if groups[g].is_input and not features]
        self._remove_cheapest([g for g in self.eligible if g not in inputs])
        if inputs and self._is_over():
            given = _given(self.chooser.graph)
            self._remove_cheapest([g for g in inputs if given[groups[g].units].any()])
        if self._is_over():
            raise self.out_of_reach()

    def _remove_cheapest(self, eligible: Sequence[int]) -> None:
        heap = [entry for g in eligible if (entry := self._entry(g)) is not None]
        heapq.heapify(heap)
        while heap and self._is_over():
            _, group = heapq.heappop(heap)
            fresh = self._entry(group)
            if fresh is None:
                continue
            if heap and fresh > heap[0]:
                heapq.heappush(heap, fresh)
                continue
            self._remove(group)
            following = self._entry(group) if self._is_over() else None
            if following is not None:
                heapq.heappush(heap, following)

    def _is_over(self) -> bool:
        return any(limit.excess(left) > 0 for limit, left in zip(self.limits, self.left, strict=True))

    def _remove(self, group: int) -> None:
        counts, chunk = self.chooser.counts, self.chooser.chunk(group)
        savings = [limit.model.saving(counts, group, chunk) for limit in self.limits]
        self.left = [left - saving for left, saving in zip(self.left, savings, strict=True)]
        counts[group] -= chunk

    def _entry(self, group: int) -> tuple[float, int] | None:
        """Price of the next chunk of a group, and the group; None where nothing more can go or nothing is saved."""
        chunk = self.chooser.chunk(group)
        if chunk == 0:
            return None
        saving, useful = self._savings(group, chunk)
        if useful <= 0:
            return None
        lost = self.chooser.lost(group, chunk) * saving / useful  # saving more than the budgets ask counts for nothing
        if self.saved is None:
            return lost / (saving if self.by_saving else chunk), group
        saved = max(self.saved.saving(self.chooser.counts, group, chunk) / self.saved.total, _NOTHING)
        # Scores that are relative to their group's mean are compared unit by unit, at the milliseconds that they save
        # for what they save of the budgets; others by what is lost in all for each millisecond.
        if self.by_saving:
            return lost / saved, group
        if not self.by_share:
            return lost / (chunk * saved / saving), group
        # Where milliseconds are all that is asked for, both are the same: it is the share lost of what a group has left
        # that is compared then, or a unit that saves nothing would be as cheap as any.
        return (lost / self.chooser.left(group) if lost else 0.0) / saved, group

    def _savings(self, group: int, chunk: int) -> tuple[float, float]:
        """Shares of the costs that the next chunk saves, and of those what is over the budgets: more counts nothing."""
        saving = useful = 0.0
        for limit, left in zip(self.limits, self.left, strict=True):
            excess = limit.excess(left)
            if excess > 0 and limit.model.touching[group]:
                # On a stair of a device a chunk saves nothing, and the next one does: it stays in the race.
                own = max(limit.model.saving(self.chooser.counts, group, chunk), _NOTHING * limit.model.total)
                saving += own / limit.model.total
                useful += min(own, excess) / limit.model.total
        return saving, useful

    def out_of_reach(self) -> OutOfReachError:
        """What is raised where a cost is over its limit: which one, how far, and the groups that hold most of it."""
        limit, left = max(
            ((limit, left) for limit, left in zip(self.limits, self.left, strict=True) if limit.excess(left) > 0),
            key=lambda pair: pair[0].excess(pair[1]) / pair[0].model.total,
        )
        graph, counts = self.chooser.graph, self.chooser.counts
        costs = sorted(
            ((limit.model.share(g, counts), group.name, g) for g, group in enumerate(graph.groups)), reverse=True
        )
        least = [name for _, name, g in costs if g in self.eligible]
        held = [name for cost, name, g in costs if g not in self.eligible and cost > 0]
        told = [f"in the way: groups at their least width ({first_of(least) or 'none'})"]
        told += [
            f"{what}: {first_of(names)}" for what, names in (("held", held), ("locked", locked_layers(graph))) if names
        ]
        fact = (
            f"{limit.share:.3g} of {limit.what} cannot be met: expected at most {_amount(limit.most)}, "
            f"got no lower than {_amount(left)} {limit.unit}"
        )
        return OutOfReachError(fact, "; ".join(told), limit.name, left / limit.most)


def locked_layers(graph: ChannelGraph) -> list[str]:
    """The layers whose outputs must stay, together for each reason, e.g. "fc (output is the model's output)"."""
    layers: dict[str, list[str]] = {}
    outputs = [lock for lock in graph.locked if lock.dim == 0]
    for lock in sorted(outputs or graph.locked, key=lambda lock: lock.name):
        layers.setdefault(lock.shared_reason, []).append(lock.layer)
    return [f"{first_of(tuple(dict.fromkeys(names)))} ({reason})" for reason, names in layers.items()]


def first_of(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _given(graph: ChannelGraph) -> np.ndarray:
    """Bool `(n_labels,)`: the units that a layer gives, input features among them where it keeps them apart."""
    given = np.zeros(len(graph.analysis.solver.canonical), dtype=bool)
    for node in graph.analysis.costs:
        for value in tree_leaves(graph.analysis.env[node]):
            for layer in value.layers:
                given[core(layer).numpy().clip(min=0)] = True
    return given


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
