"""What `edgeprune inspect` tells: every channel group, and every lock with its reason."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch.export import ExportedProgram

from edgeprune.cost import CostModel, count_parameters
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, LockedUnits, analyze
from edgeprune.importance import magnitude
from edgeprune.records import GroupRow, InputFeatures, InspectRecord, LayerWidth


def inspect_program(program: ExportedProgram, name: str, attention: str = "heads") -> InspectRecord:
    """The channel groups of a program, input features first, locked units last."""
    graph = analyze(program, inputs=True, attention=attention)
    cost = CostModel(program, graph)
    rows = [_group_row(graph, cost, number) for number in range(len(graph.groups))]
    rows.sort(key=lambda row: row.kind != "features")
    return InspectRecord(name, cost.total, count_parameters(program), (*rows, *locked_rows(graph)))


def _group_row(graph: ChannelGraph, cost: CostModel, number: int) -> GroupRow:
    group = graph.groups[number]
    touched = sum(cost.products[i].base for i in cost.touching[number])
    return GroupRow(
        name=group.name,
        kind="features" if group.is_input else "channels",
        layers=_layers(group),
        n_units=group.n_units,
        width=group.n_units * group.indices_per_unit,
        macs_share=touched / cost.total if cost.total else 0.0,
        exact=group.exact,
    )


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    names = (slot.name.rpartition(".")[0] or slot.name for slot in group.slots if slot.kind == "tensor")
    return tuple(dict.fromkeys(names))


def locked_rows(graph: ChannelGraph) -> list[GroupRow]:
    """One row for each reason and node: the layers whose channels are locked by it."""
    by_reason: dict[tuple[str, str], list[LockedUnits]] = defaultdict(list)
    for lock in graph.locked:
        if lock.dim == 0:
            by_reason[(lock.reason, lock.where or lock.node)].append(lock)
    rows = []
    for (reason, where), locks in by_reason.items():
        layers = tuple(dict.fromkeys(lock.name.rpartition(".")[0] or lock.name for lock in locks))
        widest = max(len(lock.indices) for lock in locks)
        told = f"{reason} ({where})" if where and where != "output" else reason
        rows.append(GroupRow(layers[0], "locked", layers, widest, widest, 0.0, True, told))
    return rows


def feature_weights(slim: ExportedProgram, features: InputFeatures) -> tuple[float, ...]:
    """The L2 norm of the weights that read each of `features.keep`, relative to the largest."""
    graph = analyze(slim, inputs=True)
    norms = np.zeros(features.size)
    for group, norm in zip(graph.groups, magnitude(slim, graph, 2), strict=True):
        for slot in (slot for slot in group.slots if slot.kind == "input"):
            elements = np.flatnonzero(slot.unit >= 0)
            norms[elements // (len(slot.unit) // features.size)] = norm[slot.unit[elements]]
    kept = norms[list(features.keep)]
    largest = kept.max()
    return tuple((kept / largest).round(4).tolist()) if largest > 0 else (1.0,) * len(kept)


def widths(dense: ExportedProgram, slim: ExportedProgram) -> tuple[LayerWidth, ...]:
    """Output width of every layer before and after: dim 0 of each weight of two dims or more."""
    found = []
    for name, tensor in dense.state_dict.items():
        after = slim.state_dict.get(name)
        if name.endswith("weight") and tensor.dim() > 1 and after is not None:
            found.append(LayerWidth(name.rpartition(".")[0] or name, int(tensor.shape[0]), int(after.shape[0])))
    return tuple(found)
