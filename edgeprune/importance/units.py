"""From the numbers of a tensor to those of the units in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.graph.groups import ChannelGraph, ChannelGroup, Slot

Tensors = Mapping[str, Tensor]
Scores = list[np.ndarray]  # for each group `(n_units,)`


def by_unit(
    graph: ChannelGraph, tensors: Tensors, measure: Callable[[Slot], np.ndarray], squared: bool = False
) -> Scores:
    """Sum a measure `(size of the dim,)` over the indices of each unit, then (its square) over the group's slots."""
    scores = []
    for group in graph.groups:
        total = np.zeros(group.n_units)
        for slot in tensor_slots(group, tensors):
            members = slot.unit >= 0
            part = np.bincount(slot.unit[members], measure(slot)[members], minlength=group.n_units)
            total += part**2 if squared else part
        scores.append(total)
    return scores


def tensor_slots(group: ChannelGroup, tensors: Collection[str]) -> list[Slot]:
    """The slots of a group that lie in one of these tensors."""
    return [slot for slot in group.slots if slot.kind == "tensor" and slot.name in tensors and slot.dim is not None]


def along(slot: Slot, tensor: Tensor) -> Tensor:
    """A tensor's numbers `(size of the slot's dim, everything else)` in float64."""
    assert slot.dim is not None
    return tensor.detach().cpu().double().movedim(slot.dim, 0).reshape(len(slot.unit), -1)


def vectors(slot: Slot, tensor: Tensor, n_units: int) -> Tensor:
    """What each unit has in a slot, `(n_units, n)` in float64; units with fewer indices than others end in zeros."""
    rows = along(slot, tensor)
    members = np.flatnonzero(slot.unit >= 0)
    members = members[np.argsort(slot.unit[members], kind="stable")]
    units = slot.unit[members]
    counts = np.bincount(units, minlength=n_units)
    place = np.arange(len(units)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its unit
    found = rows.new_zeros(n_units, int(counts.max(initial=0)), rows.shape[1])
    found[torch.from_numpy(units), torch.from_numpy(place)] = rows[torch.from_numpy(members)]
    return found.reshape(n_units, -1)


def relative(scores: np.ndarray) -> np.ndarray:
    """Divided by the group's mean, so that layers of different scale can be compared."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def _dims(graph: ChannelGraph) -> list[np.ndarray]:
    """The labels of every dim of a tensor, and of every size that a cost is proportional to."""
    canonical = graph.analysis.solver.canonical
    sources = [canonical[s.ids] for s in graph.analysis.sources.values() if s.kind == "tensor"]
    return [*sources, *(labels for terms in graph.costs.values() for _, vectors in terms for labels in vectors)]


def protected(graph: ChannelGraph, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Bool `(n_units,)` for each group: the most important unit of every tensor's dim, so that no dim is left empty.

    The units of a group may sit in different tensors: of a fused projection, say, some make queries and some values.
    """
    group_of = graph.group_numbers()
    group_of[0] = len(graph.groups)  # fixed elements stay, and so does the dim
    last = [np.zeros(group.n_units, dtype=bool) for group in graph.groups]
    for labels in _dims(graph):
        numbers = np.unique(group_of[labels])
        if len(numbers) > 1 or not 0 <= numbers[0] < len(graph.groups):
            continue
        members = np.isin(graph.groups[numbers[0]].units, labels)
        mine = last[numbers[0]]
        if not mine[members].any():
            mine[np.argmax(np.where(members, scores[numbers[0]], -np.inf))] = True
    for group, mine, own in zip(graph.groups, last, scores, strict=True):
        if not mine.any() and not group.is_input:  # of an input, features that are always kept can be all there is
            mine[np.argmax(own)] = True
    return last
