"""Each unit counted once: where it is read, or, where no weight reads it, where it is made."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from edgeprune.graph.groups import ChannelGraph, ChannelGroup, Slot
from edgeprune.graph.read_dims import read_dims
from edgeprune.importance.units import tensor_slots


def counted_once(graph: ChannelGraph, names: Collection[str]) -> ChannelGraph:
    """The graph with those slots alone that tell what a unit does, each unit once.

    The sum of w times gradient over all weights that read a unit is the gradient of a gate on it. A unit that goes
    through several layers (a batch norm, a depthwise convolution) or that several layers add up has many more slots,
    where it would be counted anew; an input feature has none but those that read it. What no weight reads (the
    channels of queries and keys, what goes into a mean) has the slots that make it.

    Args:
        graph: with the groups that are scored.
        names: the weights that there are gradients of.
    """
    reading = read_dims(graph.analysis)
    return replace(graph, groups=tuple(_counted(group, reading, names) for group in graph.groups))


def _counted(group: ChannelGroup, reading: Collection[tuple[str, int]], names: Collection[str]) -> ChannelGroup:
    own = tensor_slots(group, names)
    read = [slot for slot in own if (slot.name, slot.dim) in reading]
    is_read = np.zeros(group.n_units, dtype=bool)
    for slot in read:
        is_read[slot.unit[slot.unit >= 0]] = True
    made = [_without(slot, is_read) for slot in own if slot not in read]
    return replace(group, slots=(*read, *made))


def _without(slot: Slot, units: np.ndarray) -> Slot:
    """The slot without the indices of these units, bool `(n_units,)`."""
    return replace(slot, unit=np.where((slot.unit >= 0) & ~units[slot.unit.clip(min=0)], slot.unit, -1))
