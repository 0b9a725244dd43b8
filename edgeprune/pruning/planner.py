"""The planner: which units go so that costs meet their budgets and least importance is lost. It touches no weight."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.cost.device import Device
from edgeprune.cost.models import CostModel, bytes_model, latency_model, macs_model, main_step
from edgeprune.errors import BudgetError, InputError, PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.faults import public
from edgeprune.graph.groups import ChannelGraph, ChannelGroup
from edgeprune.graph.inputs import features_after
from edgeprune.graph.labels import core
from edgeprune.importance import Batches, Scores, protected, score
from edgeprune.pruning.own_forward import even_step, evened, not_taken
from edgeprune.pruning.plan import PlannedGroup, PruningPlan
from edgeprune.pruning.surgery import kept_state
from edgeprune.records import InputFeatures
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task

_NOTHING = 1e-9  # of a cost: what a chunk counts that saves nothing by itself


@public("plan")
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
    device: Device | None = None,
    keep_latency: float | None = None,
    keep_bytes: float | None = None,
    appliable: bool = False,
    leave: Collection[str] = (),
    scores: Scores | None = None,
    task: Task = CLASSIFICATION,
) -> PruningPlan:
    """Choose the units to keep: globally over all groups, least important first, until the costs are within budget.

    Args:
        program: the program that `graph` was made from.
        graph: its channel groups; with `inputs=True` input features are chosen too.
        keep_macs: largest share of the MACs to keep, in (0, 1]; where it and the other two shares are None, no channels
            are pruned.
        criterion: one of the catalog's (`edgeprune methods`); "taylor" and "activation" need `batches`.
        align: kept widths are multiples of this where the layer is at least as wide; 1 for any width. With a device,
            of the stairs of the kind of layer that takes most of the time too, or of half a stair, a quarter and so on
            where the layer is less than two stairs wide.
        exact_only: leave units alone whose removal changes the statistics of a normalisation.
        n_features: how many input features to keep at most: exactly so many where they go one by one, fewer where they
            are a layer's channels too (a depthwise first layer) and the costs are not met otherwise; None lets them
            compete with the channels.
        batches: normalised inputs and the task's targets, for the criteria that look at data.
        seed: for "random".
        device: what a unit saves is then milliseconds on this device, whatever the budget is in.
        keep_latency: largest share of the milliseconds that `device` foretells to keep, in (0, 1].
        keep_bytes: largest share of the bytes of parameters and buffers to keep, in (0, 1].
        appliable: choose what the class's own forward takes, for `slim.apply_to(model)`: the parts of a `chunk` stay
            equally wide, and groups of which a line says the size (`x.view(-1, 512)`) are left alone.
        leave: layers or groups whose units all stay, by name.
        scores: `(n_units,)` for each group, where they are known already: by this criterion, from elsewhere.
        task: what the network is for, whose loss "taylor" goes by.

    Raises:
        InputError: a number is out of range, a latency is asked for without a device, no group is called so, or the
            scores are not those of the groups.
        BudgetError: a budget cannot be met; says which groups stood in the way.
    """
    shares = {"keep_macs": keep_macs, "keep_latency": keep_latency, "keep_bytes": keep_bytes}
    _check_numbers(shares, align, device)
    stair = 1 if device is None else main_step(graph, device)
    if scores is None:
        scores = score(program, graph, criterion, batches=batches, seed=seed, task=task)
    _check_scores(graph, scores)
    eligible = _eligible(graph, named_groups(graph, leave), exact_only)
    while True:
        chooser = _Chooser(graph, scores, align, stair, even=appliable)
        if n_features is not None:
            chooser.keep_features(n_features)
        latency = latency_model(graph, device, chooser.orders) if device is not None else None
        limits = _limits(program, graph, chooser.orders, latency, shares)
        if limits:
            _Pruning(chooser, limits, latency, criterion == "taylor", eligible).run(n_features is None)
        keep = chooser.kept()
        untaken = not_taken(graph, keep) if appliable else set()
        if untaken.isdisjoint(eligible):
            return make_plan(program, graph, keep)
        eligible = [g for g in eligible if g not in untaken]


def _eligible(graph: ChannelGraph, alone: Collection[int], exact_only: bool) -> list[int]:
    """The groups that may lose units."""
    return [g for g, group in enumerate(graph.groups) if g not in alone and (group.exact or not exact_only)]


def _limits(
    program: ExportedProgram,
    graph: ChannelGraph,
    orders: Sequence[np.ndarray],
    latency: CostModel | None,
    shares: Mapping[str, float | None],
) -> list[_Limit]:
    """The costs that are asked for, each with its share."""
    models: dict[str, tuple[str, Callable[[], CostModel | None]]] = {
        "keep_macs": ("the MACs", lambda: macs_model(graph, orders)),
        "keep_latency": ("the latency", lambda: latency),
        "keep_bytes": ("the bytes", lambda: bytes_model(program, graph, orders)),
    }
    found = ((what, make(), shares[name]) for name, (what, make) in models.items() if shares[name] is not None)
    return [_Limit(what, model, share) for what, model, share in found if model is not None and share is not None]


def named_groups(graph: ChannelGraph, names: Collection[str]) -> set[int]:
    """The numbers of the groups of these names, or with units of layers of these names.

    Raises:
        InputError: there is none of a name.
    """
    found: set[int] = set()
    for name in names:
        mine = {g for g, group in enumerate(graph.groups) if name in (group.name, *group.layers)}
        if not mine and not any(lock.name.rpartition(".")[0] == name for lock in graph.locked):
            known = ", ".join(group.name for group in graph.groups[:4]) or "none"
            raise InputError(f"leave: expected the name of a layer or a group ({known}, ...), got {name!r}")
        found |= mine
    return found


def _check_scores(graph: ChannelGraph, scores: Scores) -> None:
    got, expected = [len(own) for own in scores], [group.n_units for group in graph.groups]
    if got != expected:
        raise InputError(f"scores: expected one for each unit of each group, {expected}, got {got}")


def _check_numbers(shares: Mapping[str, float | None], align: int, device: Device | None) -> None:
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{name}: expected a share in (0, 1], got {share}")
    if align < 1:
        raise InputError(f"align: expected a whole number from 1, got {align}")
    if shares["keep_latency"] is not None and device is None:
        raise InputError("keep_latency: expected a device to foretell the latency of, got none")


@dataclass(frozen=True, slots=True, eq=False)
class _Limit:
    """A cost and the largest share of it that may be left; `what` it is, e.g. "the MACs"."""

    what: str
    model: CostModel
    share: float

    @property
    def most(self) -> float:
        return self.share * self.model.total

    def excess(self, left: float) -> float:
        return left - self.most


class _Chooser:
    """How many units of each group stay; the lowest scores go first within a group."""

    def __init__(
        self, graph: ChannelGraph, scores: Sequence[np.ndarray], align: int, stair: int, even: bool = False
    ) -> None:
        self.graph = graph
        self.counts = np.array([group.n_units for group in graph.groups], dtype=float)
        _, self.sizes = graph.features()
        last = protected(graph, scores)
        self.floors = [int(own.sum()) for own in last]
        worth = [s / sizes.clip(min=1) for s, sizes in zip(scores, self.sizes, strict=True)]  # of a feature
        self.orders = [np.lexsort(keys) for keys in zip(worth, last, strict=True)]
        self.steps = [_step(group, align, stair) for group in graph.groups]
        for g in range(len(graph.groups)) if even else ():
            self._even(g, worth[g])
        self.sums = [np.concatenate([[0.0], np.cumsum(s[o])]) for s, o in zip(scores, self.orders, strict=True)]

    def _even(self, g: int, worth: np.ndarray) -> None:
        """Let the parts of a call lose as many units each."""
        even = evened(self.graph, g, self.orders[g], worth, self.floors[g])
        if even is not None:
            self.orders[g], self.floors[g] = even.order, even.floor
            self.steps[g] = even_step(self.steps[g], even.n_parts, len(even.order))

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
            weakest = min(removable, key=lambda g: self.lost(g, 1) / self._next_size(g))
            left -= self._next_size(weakest)
            self.counts[weakest] -= 1

    def _next_size(self, group: int) -> int:
        """How many features the next unit of a group has."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return int(self.sizes[group][self.orders[group][removed]])

    def lost(self, group: int, chunk: int) -> float:
        """Importance of the next `chunk` units of a group."""
        removed = self.graph.groups[group].n_units - int(self.counts[group])
        return float(self.sums[group][removed + chunk] - self.sums[group][removed])

    def chunk(self, group: int) -> int:
        """How many units to remove to come to the next lower aligned width; 0 at the last one."""
        count, step = int(self.counts[group]), self.steps[group]
        lower = (count - 1) // step * step
        return count - lower if lower >= self.floors[group] else 0


class _Pruning:
    """Removes the cheapest aligned chunk, again and again, until every cost is within its limit.

    A chunk's price only rises while others go (it saves less, and less is left to save), so a stale entry of the heap
    is re-examined when it comes up.
    """

    def __init__(
        self,
        chooser: _Chooser,
        limits: Sequence[_Limit],
        saved: CostModel | None,
        by_saving: bool,
        eligible: Sequence[int],
    ) -> None:
        self.chooser = chooser
        self.limits = limits
        self.saved = saved
        self.by_saving = by_saving
        self.left = [limit.model.cost(chooser.counts) for limit in limits]
        self.eligible = eligible

    def run(self, features: bool) -> None:
        """Remove channels, and input features where they compete; else those alone that are channels, at the last.

        Raises:
            BudgetError: a cost is over its limit when nothing is left that can go.
        """
        groups = self.chooser.graph.groups
        inputs = [g for g in self.eligible if groups[g].is_input and not features]
        self._remove_cheapest([g for g in self.eligible if g not in inputs])
        if inputs and self._is_over():
            given = _given(self.chooser.graph)
            self._remove_cheapest([g for g in inputs if given[groups[g].units].any()])
        if self._is_over():
            raise BudgetError(self._in_the_way())

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
        return lost / (saved if self.by_saving else chunk * saved / saving), group

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

    def _in_the_way(self) -> str:
        limit, left = max(
            ((limit, left) for limit, left in zip(self.limits, self.left, strict=True) if limit.excess(left) > 0),
            key=lambda pair: pair[0].excess(pair[1]) / pair[0].model.total,
        )
        graph, counts = self.chooser.graph, self.chooser.counts
        costs = ((limit.model.share(g, counts), group.name) for g, group in enumerate(graph.groups))
        held = ", ".join(name for _, name in sorted(costs, reverse=True)[:4]) or "none"
        locked = sorted({f"{lock.name} ({lock.reason})" for lock in graph.locked if lock.dim == 0})
        message = (
            f"{limit.share:.3g} of {limit.what} cannot be met: expected at most {_amount(limit.most)}, "
            f"got no lower than {_amount(left)}; in the way: groups at their least width ({held})"
        )
        if locked:
            more = f" and {len(locked) - 4} more" if len(locked) > 4 else ""
            message += f"; locked: {', '.join(locked[:4])}{more}"
        return message + "; a lower --align may help"


def _given(graph: ChannelGraph) -> np.ndarray:
    """Bool `(n_labels,)`: the units that a layer gives, input features among them where it keeps them apart."""
    given = np.zeros(len(graph.analysis.solver.canonical), dtype=bool)
    for node in graph.analysis.costs:
        for value in tree_leaves(graph.analysis.env[node]):
            for layer in value.layers:
                given[core(layer).numpy().clip(min=0)] = True
    return given


def _amount(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _step(group: ChannelGroup, align: int, stair: int) -> int:
    """Units to remove at a time so that the width stays a multiple of `align`; narrow layers are not held to it.

    It stays one of a device's `stair` too, or of the part of it of which the layer holds two at least.
    """
    if group.is_input:
        return 1
    least = align // math.gcd(align, group.indices_per_unit)
    if group.n_units < least:
        return 1
    both = math.lcm(align, stair)
    steps = (both >> halved for halved in range(both.bit_length()) if (both >> halved) % align == 0)
    steps = (width // math.gcd(width, group.indices_per_unit) for width in steps)
    return next((step for step in steps if 2 * step <= group.n_units), least)


def _kept_of_tensors(graph: ChannelGraph, keep: np.ndarray) -> dict[str, dict[int, tuple[int, ...]]]:
    """The kept indices of every dim of a tensor that loses some, under each of its names."""
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
    return tensors


def make_plan(program: ExportedProgram, graph: ChannelGraph, keep: np.ndarray) -> PruningPlan:
    """The plan that keeps the units marked in `keep`, bool `(n_labels,)`.

    Raises:
        PlanError: nothing would be left of some tensor.
    """
    tensors = _kept_of_tensors(graph, keep)
    inputs: dict[str, InputFeatures] = {}
    for kind, name, _ in graph.analysis.sources:
        features = features_after(graph.analysis, name, keep) if kind == "input" else None
        if features is not None:
            inputs[name] = features
    inputs.update(kept_state(graph, keep))
    groups = tuple(
        PlannedGroup(group.name, group.n_units, int(keep[group.units].sum()), group.exact) for group in graph.groups
    )
    state = graph.analysis.state
    return PruningPlan(digest(program), tensors, inputs, groups, graph.analysis.attention, state=state)
