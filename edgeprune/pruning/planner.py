"""The planner: which units go so that costs meet their budgets and least importance is lost. It touches no weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch.export import ExportedProgram

from edgeprune.cost.device import Device
from edgeprune.cost.limits import BYTES, LATENCY, MACS, Limit
from edgeprune.cost.memory import activation_limits
from edgeprune.cost.models import CostModel, bytes_model, latency_model, macs_model, main_step
from edgeprune.cost.widths import Alignment
from edgeprune.errors import BudgetError, InputError, PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.faults import public
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import features_after, whole_features
from edgeprune.importance import EFFECTS, Batches, Scores, score
from edgeprune.pruning.choosing import Chooser, Pruning
from edgeprune.pruning.held import Held, held_layers
from edgeprune.pruning.knapsack import Curve, allot
from edgeprune.pruning.own_forward import not_taken
from edgeprune.pruning.plan import PlannedGroup, PruningPlan
from edgeprune.pruning.surgery import kept_state
from edgeprune.records import InputFeatures
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task

Allocate = Callable[[Pruning, bool], None]  # as `Pruning.run`, whose place it takes


@public("plan")
def plan(  # noqa: PLR0913 - the public call: every choice has a name and a default
    program: ExportedProgram,
    graph: ChannelGraph,
    keep_macs: float | None = 0.5,
    criterion: str = "l2",
    align: int | None = None,
    exact_only: bool = False,
    *,
    n_features: int | None = None,
    batches: Batches = (),
    seed: int = 0,
    device: Device | None = None,
    keep_latency: float | None = None,
    keep_bytes: float | None = None,
    keep_activations: float | None = None,
    appliable: bool = False,
    leave: Collection[str] = (),
    layer_ratios: Mapping[str, float] | None = None,
    losses: Mapping[int, Curve] | None = None,
    allocate: Allocate | None = None,
    scores: Scores | None = None,
    task: Task = CLASSIFICATION,
) -> PruningPlan:
    """Choose the units to keep: globally over all groups, least important first, until the costs are within budget.

    Args:
        program: the program that `graph` was made from.
        graph: its channel groups; with `inputs=True` input features are chosen too.
        keep_macs: largest share of the MACs to keep, in (0, 1]; where it and the other three shares are None, no
            channels are pruned.
        criterion: one of the catalog's (`edgeprune methods`); "taylor", "outgoing" and "activation" need `batches`.
        align: kept widths are multiples of this where the layer is at least as wide; 1 for any width. With a device,
            of the stairs of the kind of layer that takes most of the time too, or of half a stair, a quarter and so on
            where the layer is less than two stairs wide. None: of 8, and in layers of fewer than 64 channels of those
            stairs alone, or without them of an eighth of the width. Where the budgets cannot be met so, it gives way:
            the plan's `aligned` says to what.
        exact_only: leave units alone whose removal changes the statistics of a normalisation.
        n_features: how many input features to keep at most: exactly so many where they go one by one, fewer where they
            are a layer's channels too (a depthwise first layer) and the costs are not met otherwise; None lets them
            compete with the channels. Of features along a later dim than the first a count above all of them is of the
            numbers in them, as of the flattened input.
        batches: normalised inputs and the task's targets, for the criteria that look at data.
        seed: for "random".
        device: what a unit saves is then milliseconds on this device, whatever the budget is in.
        keep_latency: largest share of the milliseconds that `device` foretells to keep, in (0, 1].
        keep_bytes: largest share of the bytes of parameters and buffers to keep, in (0, 1].
        keep_activations: largest share of the peak to keep of the bytes of activations that are alive at once, in
            (0, 1], in the order of the operators that needs the least.
        appliable: choose what the class's own forward takes, for `slim.apply_to(model)`: the parts of a `chunk` stay
            equally wide, and groups of which a line says the size (`x.view(-1, 512)`) are left alone.
        leave: layers or groups whose units all stay, by name or by patterns of names, such as `layer1.*`.
        layer_ratios: layers or groups, in the same way, that keep this share of their units, in (0, 1], to the nearest
            unit: the most important ones. The others make up for it.
        losses: what the loss rises by as a group, by its number, has fewer units, measured: widths are then those that
            lose the least together, exactly, by scipy's mixed-integer solver; scores say which units go.
        allocate: chooses the widths otherwise: it is given the greedy choice that has not run yet, and whether input
            features may go, and leaves the counts of the choice's `chooser` as they are to be, within its `limits`.
        scores: `(n_units,)` for each group, where they are known already: by this criterion, from elsewhere.
        task: what the network is for, whose loss "taylor" and "outgoing" go by.

    Raises:
        InputError: a number is out of range, a latency is asked for without a device, no group is called so, it is
            locked or held twice, or the scores are not those of the groups.
        BudgetError: a budget cannot be met; says which groups stood in the way.
    """
    shares = {
        "keep_macs": keep_macs,
        "keep_latency": keep_latency,
        "keep_bytes": keep_bytes,
        "keep_activations": keep_activations,
    }
    _check_numbers(shares, align, device)
    held = held_layers(graph, leave, layer_ratios or {})
    if scores is None:
        scores = score(program, graph, criterion, batches=batches, seed=seed, task=task)
    _check_scores(graph, scores)
    scores = [own / factor for own, factor in zip(scores, graph.price_factors(), strict=True)]
    by_saving = criterion in EFFECTS
    chosen_by = _allocation(losses, allocate)
    if n_features is not None:
        n_features = whole_features(graph.analysis, n_features)
    choice = _Choice(
        program, graph, scores, shares, device, held, n_features, by_saving, exact_only, appliable, chosen_by
    )
    preferred = Alignment.asked(align, main_step(graph, device))
    missed: BudgetError | None = None
    for alignment in preferred.giving_way():
        try:
            keep = choice.keep(alignment)
        except BudgetError as error:
            missed = error
        else:
            return make_plan(program, graph, keep, None if alignment is preferred else alignment.multiple)
    assert missed is not None
    raise missed


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What is asked of a plan, but for the widths that it prefers; see `plan`."""

    program: ExportedProgram
    graph: ChannelGraph
    scores: Scores
    shares: Mapping[str, float | None]
    device: Device | None
    held: Held
    n_features: int | None
    by_saving: bool
    exact_only: bool
    appliable: bool
    allocate: Allocate

    def keep(self, alignment: Alignment) -> np.ndarray:
        """Bool `(n_labels,)`: which units stay.

        Raises:
            BudgetError: a cost is over its limit when nothing is left that can go at this alignment.
        """
        untaken: set[int] = set()
        while True:
            keep = self._without(untaken, alignment)
            more = not_taken(self.graph, keep) - untaken if self.appliable else set()
            if more & self.held.shares.keys():
                names = ", ".join(self.graph.groups[g].name for g in more & self.held.shares.keys())
                raise InputError(f"layer_ratios: expected layers whose cut the class's own forward takes, got {names}")
            if not more:
                return keep
            untaken |= more

    def _without(self, untaken: Collection[int], alignment: Alignment) -> np.ndarray:
        """The same where these groups stay whole."""
        graph = self.graph
        chooser = Chooser(graph, self.scores, alignment, even=self.appliable)
        chooser.hold(self.held.shares)
        if self.n_features is not None:
            chooser.keep_features(self.n_features)
        latency = latency_model(graph, self.device, chooser.orders) if self.device is not None else None
        limits = limits_of(self.program, graph, latency, self.shares, chooser.orders)
        if limits:
            eligible = [g for g in self._eligible() if g not in untaken]
            self.allocate(Pruning(chooser, limits, latency, self.by_saving, eligible), self.n_features is None)
        return chooser.kept()

    def _eligible(self) -> list[int]:
        """The groups that may lose units by choice."""
        groups = enumerate(self.graph.groups)
        free = [(g, group) for g, group in groups if g not in self.held.groups and group.given is None]
        return [g for g, group in free if group.exact or not self.exact_only]


def _allocation(losses: Mapping[int, Curve] | None, allocate: Allocate | None) -> Allocate:
    """What chooses the widths: by measured losses, or as it is said, or else greedily."""
    return partial(_by_losses, losses) if losses is not None else allocate or Pruning.run


def _by_losses(losses: Mapping[int, Curve], pruning: Pruning, features: bool) -> None:
    """The widths that lose the least by what was measured."""
    groups = pruning.chooser.graph.groups
    allot(pruning.chooser, pruning.limits, losses, [g for g in pruning.eligible if features or not groups[g].is_input])


def limits_of(
    program: ExportedProgram,
    graph: ChannelGraph,
    latency: CostModel | None,
    shares: Mapping[str, float | None],
    orders: Sequence[np.ndarray] | None = None,
) -> list[Limit]:
    """The costs that are asked for, `keep_macs`, `keep_latency`, `keep_bytes` or `keep_activations`, with their shares.

    Of the activations there is one for each moment; none where all of them may stay.
    """
    models: dict[str, tuple[str, Callable[[], CostModel | None]]] = {
        "keep_macs": (MACS, lambda: macs_model(graph, orders)),
        "keep_latency": (LATENCY, lambda: latency),
        "keep_bytes": (BYTES, lambda: bytes_model(program, graph, orders)),
    }
    found = ((what, make(), shares[name]) for name, (what, make) in models.items() if shares[name] is not None)
    limits = [Limit(what, model, share) for what, model, share in found if model is not None and share is not None]
    activations = shares["keep_activations"]
    return limits if activations is None else [*limits, *activation_limits(graph, activations, orders)]


def _check_scores(graph: ChannelGraph, scores: Scores) -> None:
    got, expected = [len(own) for own in scores], [group.n_units for group in graph.groups]
    if got != expected:
        raise InputError(f"scores: expected one for each unit of each group, {expected}, got {got}")


def _check_numbers(shares: Mapping[str, float | None], align: int | None, device: Device | None) -> None:
    for name, share in shares.items():
        if share is not None and not 0 < share <= 1:
            raise InputError(f"{name}: expected a share in (0, 1], got {share}")
    if align is not None and align < 1:
        raise InputError(f"align: expected a whole number from 1, got {align}")
    if shares["keep_latency"] is not None and device is None:
        raise InputError("keep_latency: expected a device to foretell the latency of, got none")


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


def make_plan(
    program: ExportedProgram, graph: ChannelGraph, keep: np.ndarray, aligned: int | None = None
) -> PruningPlan:
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
    return PruningPlan(
        digest(program),
        tensors,
        inputs,
        groups,
        graph.analysis.attention,
        state=state,
        vocabularies=graph.rows.vocabularies,
        aligned=aligned,
    )
