"""Which whole numbers the inputs of a program may hold: those that index the rows of an embedding, the classes of a
one-hot code or a dim of another tensor, found by the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.sizes import size_hint

UNBOUNDED = 2**62
_PADS = {"pad": 3, "constant_pad_nd": 2}  # -> position of the number that is added


@dataclass(frozen=True, slots=True, eq=False)
class IndexRange:
    """The numbers that each element of an input may hold, `low` up to but without `high`, int64 of its shape.

    `high` is UNBOUNDED where nothing is indexed.
    """

    low: Tensor
    high: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Mark:
    """A value that is made of inputs: which element each number came from (0: of none), and what was added to it."""

    places: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """A node that picks by numbers which are inputs' own: what it picks with, from which inputs, and what was added.

    `inputs` is empty where some of the numbers are no input's; `shifts` are the numbers that were added on the way.
    """

    node: fx.Node
    index: fx.Node
    inputs: tuple[str, ...]
    shifts: tuple[int, ...]


def index_ranges(program: ExportedProgram) -> dict[str, IndexRange]:
    """For every input of whole numbers, by name, what its elements may hold."""
    return IndexWalk(program).ranges()


class IndexWalk:
    """One pass over the graph that follows the elements of whole-number inputs to what they index."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._tensors = {**program.constants, **program.state_dict}
        self._targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._marks: dict[fx.Node, Any] = {}
        self._static: dict[fx.Node, Tensor | None] = {}
        self._low = self._high = torch.zeros(1, dtype=torch.int64)
        self._sinks: list[tuple[fx.Node, fx.Node]] = []

    def ranges(self) -> dict[str, IndexRange]:
        """What was found, for each input."""
        count = self._mark_inputs()
        if not self._shapes:
            return {}
        self._low, self._high = torch.zeros(count, dtype=torch.int64), torch.full((count,), UNBOUNDED)
        for node in self._program.graph.nodes:
            if node.op == "call_function" and any(n in self._marks for n in node.all_input_nodes):
                self._visit(node)
        return dict(self._by_input())

    def picks(self) -> list[Pick]:
        """What picks by the inputs' numbers, in the order of the graph; after `ranges`."""
        return [Pick(node, index, *self.made_of(index)) for node, index in self._sinks]

    def follows(self, node: fx.Node) -> bool:
        """Whether what a node gives are the inputs' own numbers, or such numbers with a constant added."""
        return node in self._marks

    def made_of(self, node: fx.Node) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The inputs that the numbers of a followed tensor are of, none where some are no input's, and their shifts."""
        mark = self._marks[node]
        if not isinstance(mark, _Mark) or bool((mark.places == 0).any()):
            return (), ()
        found, start = [], 1
        for name, shape in self._shapes.items():
            stop = start + torch.Size(shape).numel()
            if bool(((mark.places >= start) & (mark.places < stop)).any()):
                found.append(name)
            start = stop
        return tuple(found), tuple(mark.shift.unique().tolist())

    def _mark_inputs(self) -> int:
        """Number the elements of the inputs of whole numbers from 1 on; the next number."""
        nodes = {node.name: node for node in self._program.graph.find_nodes(op="placeholder")}
        given = [nodes[name] for name in self._program.graph_signature.user_inputs if name in nodes]
        count = 1
        for node in (
            node for node in given if isinstance(node.meta.get("val"), Tensor) and _is_whole(node.meta["val"])
        ):
            shape = binding.shape_of(node.meta["val"])
            size = torch.Size(shape).numel()
            places = torch.arange(count, count + size).reshape(shape)
            self._marks[node] = _Mark(places, torch.zeros_like(places))
            self._shapes[node.name], count = shape, count + size
        return count

    def _by_input(self) -> Any:
        start = 1
        for name, shape in self._shapes.items():
            stop = start + torch.Size(shape).numel()
            yield name, IndexRange(self._low[start:stop].reshape(shape), self._high[start:stop].reshape(shape))
            start = stop

    def _visit(self, node: fx.Node) -> None:
        name = operator_name(node.target)
        sink = _SINKS.get(name)
        if sink is not None:
            for index, size in sink(_bound(node)):
                if isinstance(index, fx.Node) and isinstance(self._marks.get(index), _Mark):
                    self._sinks.append((node, index))
                    self._limit(self._marks[index], int(size))
        mark = self._after(node, name)
        if mark is not None:
            self._marks[node] = mark

    def _limit(self, mark: _Mark, size: int) -> None:
        """What is indexed has `size` entries."""
        places, shift = mark.places.reshape(-1), mark.shift.reshape(-1)
        self._high.scatter_reduce_(0, places, size - shift, "amin")
        self._low.scatter_reduce_(0, places, (-shift).clamp(min=0), "amax")

    def _after(self, node: fx.Node, name: str) -> Any:
        """The mark of a node's result, where it still holds the inputs' numbers."""
        source = node.args[0] if node.args else None
        if name == "getitem":
            marks = self._marks.get(source)  # type: ignore[arg-type]
            position: Any = node.args[1]
            return marks[position] if isinstance(marks, list) else None
        if not _is_whole(node.meta.get("val")):
            return None
        kind = kind_of(node.target)
        if kind is Kind.JOIN:
            return self._mapped(node, tuple(node.all_input_nodes))
        if not isinstance(source, fx.Node):
            return None
        if name in ("add", "sub"):
            return self._shifted(node, 1 if name == "add" else -1)
        return self._mapped(node, (source,)) if kind in (Kind.MOVE, Kind.COPY) else None

    def _mapped(self, node: fx.Node, sources: tuple[fx.Node, ...]) -> Any:
        """The operator itself, run on the places and on the shifts."""
        marks = {source: self._marks.get(source) or _nothing(source) for source in sources}
        others = {other: self._value(other) for other in node.all_input_nodes if other not in marks}
        if any(value is None for value in others.values()) or not all(isinstance(m, _Mark) for m in marks.values()):
            return None
        places = _run(node, {**others, **{source: mark.places for source, mark in marks.items()}}, added=0)
        shifts = _run(node, {**others, **{source: mark.shift for source, mark in marks.items()}})
        if isinstance(places, Tensor):
            return _Mark(places, shifts)
        return [_Mark(*pair) for pair in zip(places, shifts, strict=True)]

    def _shifted(self, node: fx.Node, sign: int) -> _Mark | None:
        """The mark after a constant was added or subtracted."""
        left, right = node.args[:2]
        if sign > 0 and not isinstance(self._marks.get(left), _Mark):  # type: ignore[arg-type]
            left, right = right, left
        mark = self._marks.get(left)  # type: ignore[arg-type]
        if not isinstance(mark, _Mark) or node.kwargs.get("alpha", 1) != 1:
            return None
        added = self._known(right) if isinstance(right, fx.Node) else torch.tensor(right)
        if added is None or added.is_floating_point():
            return None
        places, shift = torch.broadcast_tensors(mark.places, mark.shift + sign * added.to(torch.int64))
        return _Mark(places, shift)

    def _known(self, node: fx.Node) -> Tensor | None:
        """The value of what depends on no input; None for what does, and for floats."""
        if node not in self._static:
            self._static[node] = self._computed(node)
        return self._static[node]

    def _computed(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            return self._tensors.get(self._targets.get(node.name) or "")
        if node.op != "call_function" or not _is_whole(node.meta.get("val")):
            return None
        known = {other: self._value(other) for other in node.all_input_nodes}
        if any(value is None for value in known.values()):
            return None
        result = _run(node, known)
        return result if isinstance(result, Tensor) else None

    def _value(self, node: fx.Node) -> Any:
        val = node.meta.get("val")
        return self._known(node) if isinstance(val, Tensor) else size_hint(val)


def _run(node: fx.Node, values: dict[fx.Node, Any], added: int | None = None) -> Any:
    """The operator's result on values in place of the nodes that it takes; a padding adds `added` where it is given."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), binding.spared(node, values).__getitem__)
    position = _PADS.get(operator_name(node.target)) if added is not None else None
    if position is not None and position < len(args) and args[position] is not None:
        args = (*args[:position], added, *args[position + 1 :])
    elif position is not None and kwargs.get("value") is not None:
        kwargs = {**kwargs, "value": added}
    return binding.run(node, (args, kwargs))


def _is_whole(val: Any) -> bool:
    """Whether a node gives whole numbers or truth values, or parts that all do."""
    if isinstance(val, (list, tuple)):
        return bool(val) and all(map(_is_whole, val))
    return isinstance(val, Tensor) and not val.is_floating_point() and not val.is_complex()


def _nothing(node: fx.Node) -> _Mark:
    """The mark of a value that no input's numbers are in."""
    zeros = torch.zeros(binding.shape_of(node.meta["val"]), dtype=torch.int64)
    return _Mark(zeros, zeros)


# -- what indexes -----------------------------------------------------------------------------------------------------


def _bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by their names in the schema."""
    return binding.bind(node, lambda other: other).args


def _sizes(node: Any) -> tuple[int, ...]:
    return binding.shape_of(node.meta["val"])


def _rows(args: dict[str, Any]) -> list[tuple[Any, int]]:
    return [(args["indices"], _sizes(args["weight"])[0])]


def _classes(args: dict[str, Any]) -> list[tuple[Any, int]]:
    return [(args["self"], args["num_classes"])] if args["num_classes"] > 0 else []


def _along_dim(args: dict[str, Any]) -> list[tuple[Any, int]]:
    sizes = _sizes(args["self"])
    return [(args.get("index", args.get("indices")), sizes[args["dim"] or 0])] if sizes else []


def _flat(args: dict[str, Any]) -> list[tuple[Any, int]]:
    return [(args["index"], torch.Size(_sizes(args["self"])).numel())]


def _by_several(args: dict[str, Any]) -> list[tuple[Any, int]]:
    pairs = zip(args["indices"], _sizes(args["self"]), strict=False)
    return [(index, size) for index, size in pairs if index is not None and index.meta["val"].dtype is not torch.bool]


_SINKS: dict[str, Callable[[dict[str, Any]], list[tuple[Any, int]]]] = {
    "embedding": _rows,
    "embedding_bag": _rows,
    "_embedding_bag": _rows,
    "one_hot": _classes,
    **dict.fromkeys(
        ("index_select", "gather", "take_along_dim", "scatter", "scatter_add", "scatter_reduce"), _along_dim
    ),
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), _along_dim),
    "take": _flat,
    "index": _by_several,
    "index_put": _by_several,
}
