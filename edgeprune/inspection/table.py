"""What `edgeprune inspect` tells: every channel group, and every lock with its reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.cost.macs import count_parameters
from edgeprune.cost.models import CostModel, macs_model
from edgeprune.graph.binding import static_nodes
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, LockedUnits, analyze
from edgeprune.graph.labels import core
from edgeprune.graph.names import split_names
from edgeprune.inspection.tokens import token_rows
from edgeprune.results import GroupRow, InspectRecord, LayerWidth

_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What was found in a program, and its channel groups; `rows[number]` is the row of each group's number."""

    record: InspectRecord
    graph: ChannelGraph
    rows: Mapping[int, int]


def inspect_program(program: ExportedProgram, name: str, attention: str = "heads") -> Inspection:
    """The channel groups of a program, input features first, locked units last."""
    graph = analyze(program, inputs=True, attention=attention)
    cost = macs_model(graph)
    n_params = count_parameters(program)
    heads = _head_units(graph)
    order = sorted(range(len(graph.groups)), key=lambda number: not graph.groups[number].is_input)
    rows = [_group_row(graph, cost, number, heads, n_params) for number in order]
    found = (*rows, *locked_rows(graph))
    record = InspectRecord(name, round(cost.total), n_params, found, tokens=token_rows(graph.analysis.program))
    return Inspection(record, graph, {number: row for row, number in enumerate(order)})


def _group_row(graph: ChannelGraph, cost: CostModel, number: int, heads: np.ndarray, n_params: int) -> GroupRow:
    group = graph.groups[number]
    counts = np.array([other.n_units for other in graph.groups], dtype=float)
    macs = float(cost.saving(counts, number, group.n_units))
    return GroupRow(
        name=group.name,
        kind=_kind(group, heads),
        layers=_layers(group),
        n_units=group.n_units,
        width=_width(group),
        macs_share=macs / cost.total if cost.total else 0.0,
        exact=group.exact,
        params_share=_parameters(graph, group) / n_params if n_params else 0.0,
    )


def _kind(group: ChannelGroup, heads: np.ndarray) -> str:
    if group.is_input:
        return "features"
    spans_several = any((np.bincount(slot.unit[slot.unit >= 0]) > 1).any() for slot in group.slots)
    return "heads" if spans_several and np.isin(group.units, heads).all() else "channels"


def _head_units(graph: ChannelGraph) -> np.ndarray:
    """Units along the leading dims of a product of two activations: the heads of an attention, `(n_units,)`."""
    static = static_nodes(graph.analysis.program)
    found = [np.zeros(0, dtype=np.int64)]
    for call in graph.analysis.calls.values():
        if call.name not in _PRODUCTS or not static.isdisjoint(call.node.all_input_nodes[:2]):
            continue
        for value in call.values[:2]:
            leading = range(len(value.shape) - 2)
            found += [np.unique(core(layer).numpy()) for layer in value.layers if set(layer.dims) <= set(leading)]
    return np.unique(np.concatenate(found))


def _width(group: ChannelGroup) -> int:
    """How many channels of the layer that makes the units belong to them."""
    if group.is_input:
        return group.n_units
    slots = [slot for slot in group.slots if slot.dim == 0] or list(group.slots)
    return int((slots[0].unit >= 0).sum())


def _parameters(graph: ChannelGraph, group: ChannelGroup) -> float:
    """How many parameters would go with all units of a group."""
    left: dict[str, float] = {}
    for slot in group.slots:
        if slot.kind == "tensor":
            left[slot.name] = left.get(slot.name, 1.0) * float((slot.unit < 0).mean())
    tensors = graph.analysis.program.state_dict
    return sum(
        (1.0 - share) * tensors[name].numel()
        for name, share in left.items()
        if isinstance(tensors.get(name), torch.nn.Parameter)
    )


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    names = (slot.name.rpartition(".")[0] or slot.name for slot in group.slots if slot.kind == "tensor")
    return tuple(dict.fromkeys(names))


def locked_rows(graph: ChannelGraph) -> list[GroupRow]:
    """One row for each reason and place: the layers whose channels are locked by it."""
    by_reason: dict[tuple[str, str], list[LockedUnits]] = defaultdict(list)
    for lock in graph.locked:
        if lock.dim == 0:
            by_reason[(lock.shared_reason, lock.where)].append(lock)
    rows = []
    for (reason, _), locks in by_reason.items():
        first = locks[0]
        layers = tuple(dict.fromkeys(lock.layer for lock in locks))
        widest = max(len(lock.indices) for lock in locks)
        rows.append(
            GroupRow(
                layers[0], "locked", layers, widest, widest, 0.0, True,
                reason=reason, operator=first.operator, where=first.where or None, remedy=first.remedy,
            )
        )  # fmt: skip
    return rows


def explained(row: GroupRow) -> str:
    """Why a row is locked, with the source line where it is known."""
    return f"{row.reason} ({row.where})" if row.where else str(row.reason)


def widths(dense: ExportedProgram, slim: ExportedProgram) -> tuple[LayerWidth, ...]:
    """Output width of every layer before and after: dim 0 of each weight of two dims or more, of the last of two."""
    found = []
    for name, tensor in dense.state_dict.items():
        after = slim.state_dict.get(name, slim.state_dict.get(split_names(name)[1]))
        if name.endswith("weight") and tensor.dim() > 1 and after is not None:
            found.append(LayerWidth(name.rpartition(".")[0] or name, int(tensor.shape[0]), int(after.shape[0])))
    return tuple(found)
