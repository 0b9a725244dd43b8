"""What a drawing of the channel groups shows: the layers of a network, what flows between them, and their groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from edgeprune.graph.binding import static_nodes
from edgeprune.graph.call import operator_name
from edgeprune.graph.labels import Value, core
from edgeprune.graph.reasons import advice
from edgeprune.inspection.table import Inspection, explained
from edgeprune.results import GroupRow


@dataclass(frozen=True, slots=True)
class DrawnLayer:
    """One box of a drawing: a layer, a join of several values, an input or the output.

    `group` is the number of the row of `InspectRecord.groups` whose units it gives out, None for none; `note` tells
    more than fits into the box, for locked ones the reason. `kind` is `input`, `layer`, `join` or `output`.
    """

    name: str
    kind: str
    operator: str
    group: int | None
    locked: bool
    renormalised: bool
    note: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A network as boxes in the order of the graph and arrows between them, `(from, to)` by their numbers."""

    title: str
    layers: tuple[DrawnLayer, ...]
    arrows: tuple[tuple[int, int], ...]


def draw(found: Inspection) -> Drawing:
    """The layers of an inspected network (what has parameters), joins of several values, inputs and the output.

    All other operators are left out: an arrow runs through them.
    """
    return _Drawer(found).drawing()


class _Drawer:
    """Walks the graph once; `_behind[node]` are the numbers of the boxes that a node's value comes from."""

    def __init__(self, found: Inspection) -> None:
        self._record, self._graph, self._rows = found.record, found.graph, found.rows
        self._program = found.graph.analysis.program
        self._group_of = found.graph.group_numbers()
        self._static = static_nodes(self._program)
        self._parameters: dict[fx.Node, list[str]] = {}
        self._behind: dict[fx.Node, list[int]] = {}
        self._layers: list[DrawnLayer] = []
        self._arrows: list[tuple[int, int]] = []

    def drawing(self) -> Drawing:
        """The whole picture."""
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind is InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor):
                    self._add(node, node.name, "input", [])
                self._parameters[node] = [str(spec.target)] if spec.kind is InputKind.PARAMETER else []
            elif node.op == "output":
                self._add(node, "output", "output", self._sources(node))
            elif node in self._static:
                self._parameters[node] = self._read(node)
            else:
                self._call(node)
        return Drawing(self._record.model, tuple(self._layers), tuple(self._arrows))

    def _call(self, node: fx.Node) -> None:
        sources, parameters = self._sources(node), self._read(node)
        if not any(isinstance(value, Tensor) for value in tree_leaves(node.meta.get("val"))):
            self._behind[node] = []  # a size
        elif parameters and sources:
            self._add(node, parameters[0].rpartition(".")[0] or parameters[0], "layer", sources)
        elif len(sources) > 1:
            self._add(node, operator_name(node.target), "join", sources)
        else:
            self._behind[node] = sources

    def _sources(self, node: fx.Node) -> list[int]:
        found = (number for argument in node.all_input_nodes for number in self._behind.get(argument, ()))
        return list(dict.fromkeys(found))

    def _read(self, node: fx.Node) -> list[str]:
        """The parameters among a node's arguments, or that constants among them are made of."""
        found = (name for argument in node.all_input_nodes for name in self._parameters.get(argument, ()))
        return list(dict.fromkeys(found))

    def _add(self, node: fx.Node, name: str, kind: str, sources: list[int]) -> None:
        row = None if kind == "output" else self._row_of(node)
        locked = self._lock(name) if row is None and kind != "output" else None
        operator = operator_name(node.target) if node.op == "call_function" else kind
        group = None if row is None else self._record.groups[row]
        self._layers.append(
            DrawnLayer(
                name=name,
                kind=kind,
                operator=operator,
                group=row,
                locked=row is None and kind in ("layer", "join"),
                renormalised=group is not None and not group.exact,
                note=_note(group, locked),
            )
        )
        self._behind[node] = [len(self._layers) - 1]
        self._arrows += [(source, len(self._layers) - 1) for source in sources]

    def _row_of(self, node: fx.Node) -> int | None:
        """The row of the group that most units of a node's value belong to; None where none can go."""
        counts: dict[int, int] = {}
        for value in tree_leaves(self._graph.analysis.env.get(node)):
            for layer in value.layers if isinstance(value, Value) else ():
                if len(layer.dims) == 1 or value.raw:
                    numbers = self._group_of[np.maximum(core(layer).numpy(), 0)]
                    for number, count in zip(*np.unique(numbers[numbers >= 0], return_counts=True), strict=True):
                        counts[int(number)] = counts.get(int(number), 0) + int(count)
        return self._rows[max(counts, key=lambda number: counts[number])] if counts else None

    def _lock(self, name: str) -> GroupRow | None:
        return next((row for row in self._record.groups if row.kind == "locked" and name in row.layers), None)


def _note(group: GroupRow | None, locked: GroupRow | None) -> str:
    if group is not None:
        cut = "exact" if group.exact else "renormalised: a cut changes the statistics of a normalisation"
        return f"group {group.name}: {group.n_units} {group.kind}, {100 * group.macs_share:.1f} % of the MACs; {cut}"
    return f"locked: {explained(locked)}; {advice(str(locked.remedy))}" if locked is not None else ""
