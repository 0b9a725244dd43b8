"""Criteria: how much each unit matters, by its weights, by what it computes or by its effect on the loss.

Each gives `(n_units,)` for each group; higher matters more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from edgeprune.data import fed
from edgeprune.data.ranks import ALONE, Ranks, in_order
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, Slot
from edgeprune.importance.activation import Batches, mean_activations
from edgeprune.importance.once import counted_once
from edgeprune.importance.units import Scores, Tensors, along, by_unit, relative, tensor_slots, vectors
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task

_FAST = "use_mm_for_euclid_dist"  # within 1e-7 of the norms, in float64


def magnitude(graph: ChannelGraph, tensors: Tensors, power: int) -> Scores:
    """L1 (`power` 1) or L2 (`power` 2) norm of everything that goes with a unit.

    Norms are divided by their group's mean, so that layers of different scale can be compared (Li et al., Pruning
    Filters for Efficient ConvNets, ICLR 2017; Fang et al., DepGraph, CVPR 2023).
    """
    return [relative(mass ** (1 / power)) for mass in _masses(graph, tensors, power)]


def lamp(graph: ChannelGraph, tensors: Tensors) -> Scores:
    """A unit's squared norm over those of all units of its group that are no smaller: at most 1, in every group.

    Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, with units for weights. The largest
    unit of a group has 1, and goes last wherever it is.
    """
    return [_among_no_smaller(mass) for mass in _masses(graph, tensors, 2)]


def fpgm(graph: ChannelGraph, tensors: Tensors) -> Scores:
    """How far a unit's filter is from all others of its group: one near their geometric median can be replaced.

    The sum of the distances to the other units' (He et al., Filter Pruning via Geometric Median, CVPR 2019), over the
    layers that produce the units; of input features, over those that read them. Relative to the group's mean.
    """
    scores = []
    for group in graph.groups:
        slots = [slot for slot in tensor_slots(group, tensors) if tensors[slot.name].dim() > 1]
        makers = [slot for slot in slots if slot.dim == 0] or slots
        if not makers:
            scores.append(np.ones(group.n_units))
            continue
        filters = torch.cat([vectors(slot, tensors[slot.name], group.n_units) for slot in makers], dim=1)
        scores.append(relative(torch.cdist(filters, filters, compute_mode=_FAST).sum(1).numpy()))
    return scores


def bn_scale(graph: ChannelGraph, tensors: Tensors) -> Scores:
    """The size of a unit's batch norm scales, relative to the group's mean.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017. A group without batch
    norm has its relative l2 norm.

    Raises:
        InputError: no group has batch norm.
    """
    scales = batch_norm_scales(graph)
    own = {name: tensors[name] for name in scales}
    found = by_unit(graph, own, lambda slot: along(slot, own[slot.name]).abs().sum(1).numpy())
    has_scales = [bool(tensor_slots(group, dict.fromkeys(scales, torch.empty(0)))) for group in graph.groups]
    if not any(has_scales):
        raise InputError("criterion bn-scale: expected a network with batch norm on its channels, got none")
    norms = magnitude(graph, tensors, 2)
    return [relative(own) if has else norm for own, has, norm in zip(found, has_scales, norms, strict=True)]


def batch_norm_scales(graph: ChannelGraph) -> set[str]:
    """The names of the weights of batch norms."""
    program = graph.analysis.program
    names = program.graph_signature.inputs_to_parameters
    calls = (node for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default)
    weights = (node.args[1] for node in calls)
    return {names[weight.name] for weight in weights if isinstance(weight, torch.fx.Node) and weight.name in names}


def taylor(
    program: ExportedProgram,
    graph: ChannelGraph,
    batches: Batches,
    task: Task = CLASSIFICATION,
    ranks: Ranks = ALONE,
) -> Scores:
    """First-order effect on the loss of removing a unit, over real batches.

    The mean over batches of `(sum of g w over the unit's weights in a tensor) ** 2`, summed over its tensors (Molchanov
    et al., Importance Estimation for Neural Network Pruning, CVPR 2019). `batches` yields normalised inputs and
    the targets of the task.
    """
    each = _each_effects(program, batches, task, lambda parameters: effects(graph, parameters), ranks)
    return _mean("taylor", in_order(ranks, each))


def outgoing(
    program: ExportedProgram,
    graph: ChannelGraph,
    batches: Batches,
    task: Task = CLASSIFICATION,
    ranks: Ranks = ALONE,
) -> Scores:
    """The squared gradient of a gate on each unit, over real batches: each is counted once, input features too.

    The mean over batches of `(sum of g w over all weights that read the unit) ** 2`, see `counted_once`: the same of
    a hidden unit as of an input feature, which `taylor` counts in one tensor where it counts the other in three.
    """
    once = counted_once(graph, {name for name, _ in program.named_parameters()})

    def gates(parameters: Tensors) -> Scores:
        return [total**2 for total in by_unit(once, parameters, lambda slot: _effect(slot, parameters))]

    return _mean("outgoing", in_order(ranks, _each_effects(program, batches, task, gates, ranks)))


def _each_effects(
    program: ExportedProgram, batches: Batches, task: Task, effects_of: Callable[[Tensors], Scores], ranks: Ranks
) -> Iterator[Scores]:
    """What `effects_of` makes of the parameters with their gradients, for each batch of this process."""
    module = Program.adopt(program).module()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for number, (x, y) in enumerate(batches):
        module.zero_grad(set_to_none=True)
        seed = ranks.share.rank + number * ranks.share.n_ranks  # the batch's number among those of all
        task.scoring(fed(module, x), y, seed=seed).backward()
        yield effects_of(parameters)


def _mean(criterion: str, each: Iterator[Scores]) -> Scores:
    """The mean over batches."""
    totals: Scores | None = None
    n_batches = 0
    for found in each:
        n_batches += 1
        totals = found if totals is None else [total + step for total, step in zip(totals, found, strict=True)]
    if totals is None:
        raise _no_batches(criterion)
    return [total / n_batches for total in totals]


def effects(graph: ChannelGraph, parameters: Tensors) -> Scores:
    """`(sum of g w over the unit's weights in a tensor) ** 2`, summed over its tensors, with the present gradients."""
    return by_unit(graph, parameters, lambda slot: _effect(slot, parameters), squared=True)


def _effect(slot: Slot, parameters: Tensors) -> np.ndarray:
    parameter = parameters[slot.name]
    if parameter.grad is None:
        return np.zeros(len(slot.unit))
    return np.asarray(along(slot, parameter * parameter.grad).sum(1).numpy())


def activation(program: ExportedProgram, graph: ChannelGraph, batches: Batches, ranks: Ranks = ALONE) -> Scores:
    """The mean size of what a unit puts out, as it comes to the layers that read it, relative to the group's mean.

    Polyak and Wolf, Channel-Level Acceleration of Deep Face Representations, 2015. Over all batches and positions, and
    over all linear layers and plain convolutions that read the unit; of a unit that none of them reads, as it leaves
    the layers that produce it.

    Raises:
        InputError: there are no batches, or a group that no such layer reads or produces.
    """
    found = mean_activations(program, batches, ranks)
    if found is None:
        raise _no_batches("activation")
    scores = []
    for group in graph.groups:
        parts = [
            np.bincount(slot.unit[own], found[slot.name, slot.dim][own], minlength=group.n_units)
            / np.bincount(slot.unit[own], minlength=group.n_units).clip(min=1)
            for reading in (1, 0)
            for slot in group.slots
            if (slot.name, slot.dim) in found and slot.dim == reading
            for own in [slot.unit >= 0]
        ]
        readers = sum((slot.name, slot.dim) in found and slot.dim == 1 for slot in group.slots)
        if not parts:
            raise InputError(
                f"criterion activation: expected channels that a linear layer or convolution reads or produces, "
                f"got {group.name}"
            )
        scores.append(relative(np.mean(parts[: readers or None], axis=0)))
    return scores


def random_scores(graph: ChannelGraph, seed: int) -> Scores:
    """Uniform random numbers: the baseline that every criterion has to beat."""
    generator = np.random.default_rng(seed)
    return [generator.random(group.n_units) for group in graph.groups]


def _no_batches(criterion: str) -> InputError:
    return InputError(f"criterion {criterion} needs real batches: expected at least one, got none; give --data")


def _masses(graph: ChannelGraph, tensors: Tensors, power: int) -> Scores:
    """The sum of `|w| ** power` over everything that goes with a unit."""
    known: dict[tuple[str, int | None], np.ndarray] = {}  # what is read behind a concatenation is in many slots
    names = {slot.name for group in graph.groups for slot in tensor_slots(group, tensors)}
    # One piece of memory for all: taken anew for each, it leaves holes, as large as the network in the end.
    scratch = torch.empty(max((tensors[name].numel() for name in names), default=0), dtype=torch.float64)

    def mass(slot: Slot) -> np.ndarray:
        key = slot.name, slot.dim
        if key not in known:
            tensor = tensors[slot.name].detach()
            known[key] = _mass(slot, scratch[: tensor.numel()].view(tensor.shape).copy_(tensor), power)
        return known[key]

    return by_unit(graph, tensors, mass)


def _mass(slot: Slot, own: Tensor, power: int) -> np.ndarray:
    """The sum of `|w| ** power`, 1 or 2, for each index of the slot's dim, over numbers in float64 that are used up."""
    own = own.abs_() if power == 1 else own.square_()
    others = [dim for dim in range(own.dim()) if dim != slot.dim]
    return np.array((own.sum(others) if others else own).numpy())


def _among_no_smaller(mass: np.ndarray) -> np.ndarray:
    order = np.argsort(mass, kind="stable")
    rest = np.cumsum(mass[order][::-1])[::-1]  # a unit and all that are larger
    first = np.searchsorted(mass[order], mass)  # of those that are equal
    return np.divide(mass, rest[first], out=np.zeros_like(mass), where=rest[first] > 0)
