"""The most memory that a network's values take at once, for one sample, in float and in int8.

Weights are not counted: a file has them. Inputs and outputs are, and what operators compute. Reshapes, transposes and
slices share the memory of what they show, and so does what puts kept input features in the order that a network's own
transposes gave them; an elementwise operator, batch norm among them, may write over what it is the last to read. What a
runtime needs beside (im2col, packed weights) is its own affair.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.cost.liveness import Lifetimes, Operation, Peak
from edgeprune.graph.names import GATHER, ORDER
from edgeprune.graph.sizes import input_values, size_hint
from edgeprune.results import PeakActivations

_SHOWN = 4  # tensors of a peak
_IDENTITIES = ("dropout", "dropout_", "alpha_dropout", "feature_dropout")  # once a network is trained
_OVER_THEIR_INPUT = ("batch_norm", "_native_batch_norm_legit_no_training")  # elementwise, but not marked so


def peak_activations(program: ExportedProgram) -> PeakActivations:
    """The peak in the types that the network computes in, batch of one."""
    return _peak(Values.of(program), int8=False)


def peak_int8_activations(program: ExportedProgram) -> PeakActivations:
    """The peak with one byte for each float, batch of one."""
    return _peak(Values.of(program), int8=True)


def in_words(peak: PeakActivations) -> str:
    """E.g. `24,576 at conv2d_1: conv2d_1 16,384, relu 8,192`."""
    tensors = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in peak.tensors[:_SHOWN])
    more = ", ..." if len(peak.tensors) > _SHOWN else ""
    return f"{peak.n_bytes:,} at {peak.at}: {tensors}{more}"


def _peak(values: Values, int8: bool) -> PeakActivations:
    sizes = values.sizes(int8)
    peak: Peak = values.lifetimes(sizes).best()
    live = sorted(((values.names[value], sizes[value]) for value in peak.live), key=lambda one: (-one[1], one[0]))
    at = "the inputs" if peak.operation is None else values.operators[peak.operation]
    return PeakActivations(peak.n_bytes, at, tuple(one for one in live if one[1]), peak.is_best)


def _n_bytes(value: Tensor, numbers: Mapping[Any, Any], int8: bool) -> int:
    n_elements = 1
    for size in value.shape:
        n_elements *= _size(size, numbers)
    return n_elements * (1 if int8 and value.dtype.is_floating_point else value.element_size())


def _size(size: Any, numbers: Mapping[Any, Any]) -> int:
    """A size with the batches as 1 and other free sizes as they were at capture."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    found = size.node.expr.xreplace(numbers)
    return int(found) if found.is_number else int(size_hint(size))


def _numbers(program: ExportedProgram) -> dict[Any, Any]:
    """What the symbols of free sizes stand for."""
    numbers: dict[Any, Any] = {}
    for value in input_values(program):
        sizes = enumerate(value.shape) if isinstance(value, Tensor) else ()
        for dim, size in sizes:
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and numbers.get(size.node.expr) != 1:
                numbers[size.node.expr] = sympy.Integer(size_hint(size) if dim else 1)
    return numbers


def _orders(program: ExportedProgram) -> frozenset[str]:
    """The nodes of the buffers by which a slim contract puts its features in order, those that leave none out."""
    named = _indices(program, ORDER).items()
    return frozenset(
        node for node, index in named if torch.equal(index.flatten().sort().values, torch.arange(index.numel()))
    )


def _indices(program: ExportedProgram, prefix: str) -> dict[str, Tensor]:
    """The buffers of a slim program whose names begin so, by their nodes."""
    tensors = {**program.constants, **program.state_dict}
    named = program.graph_signature.inputs_to_buffers.items()
    return {node: tensors[name] for node, name in named if name.startswith(prefix)}


@dataclass(slots=True, eq=False)
class Values:
    """The values of a program by number, and what reads and writes them.

    `places` are the nodes that give them, each with the number of the tensor among all that its node gives.
    """

    numbers: dict[Any, Any]
    tensors: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: list[tuple[fx.Node, int]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    orders: frozenset[str] = frozenset()
    gathers: frozenset[str] = frozenset()
    _stands: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)  # the values that a node's outputs are

    @classmethod
    def of(cls, program: ExportedProgram, slim: bool = False) -> Values:
        """Those of a program; `slim` takes what it gathers of its inputs for what a device is given."""
        gathers = _indices(program, GATHER).keys() if slim else ()
        values = cls(_numbers(program), orders=_orders(program), gathers=frozenset(gathers))
        inputs = set(program.graph_signature.user_inputs)
        outputs = set(program.graph_signature.user_outputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs and isinstance(node.meta.get("val"), Tensor):
                values._stands[node] = (values._added(node, 0, node.name, node.meta["val"]),)
                values.given += values._stands[node]
            elif node.op == "call_function":
                values._call(node)
            if node.name in outputs:
                values.kept += values._stands.get(node, ())
        return values

    def sizes(self, int8: bool = False) -> list[int]:
        """The bytes of each, for one sample."""
        return [_n_bytes(value, self.numbers, int8) for value in self.tensors]

    def lifetimes(self, sizes: Sequence[int]) -> Lifetimes:
        """When each of them is alive."""
        return Lifetimes(sizes, self.given, self.kept, self.operations)

    def _added(self, node: fx.Node, number: int, name: str, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self.names.append(name)
        self.places.append((node, number))
        return len(self.tensors) - 1

    def _call(self, node: fx.Node) -> None:
        """An operator that reads values; what is made of weights alone stands in a file, and is none."""
        read = [source for source in node.all_input_nodes if source in self._stands]
        results = _results(node)
        if not read or not results:
            return
        if node.target is operator.getitem:
            self._stands[node] = self._picked(node, read[0])
        elif _is_view(node, results) or self._is_moved_input(node, results):
            shown = self._stands[read[0]]
            self._stands[node] = shown * len(results) if len(shown) == 1 else shown
        else:
            self._write(node, read, results)

    def _is_moved_input(self, node: fx.Node, results: list[Tensor]) -> bool:
        """Whether it puts all features of its input in another order, in place of the dense network's transposes.

        Or takes those that are kept, where a device is given no others.
        """
        if node.target is not torch.ops.aten.index_select.default:
            return False
        source, _, index = node.args
        assert isinstance(source, fx.Node)
        if not isinstance(index, fx.Node):
            return False
        is_whole = results[0].shape == source.meta["val"].shape
        return index.name in self.gathers or (index.name in self.orders and is_whole)

    def _picked(self, node: fx.Node, several: fx.Node) -> tuple[int, ...]:
        """One of several results; all of them where they are no plain list of tensors."""
        shown, parts = self._stands[several], several.meta["val"]
        is_one_each = isinstance(parts, list | tuple) and len(parts) == len(shown)
        return (shown[int(node.args[1])],) if is_one_each else shown  # type: ignore[arg-type]

    def _write(self, node: fx.Node, read: Iterable[fx.Node], results: list[Tensor]) -> None:
        names = [node.name] if len(results) == 1 else [f"{node.name}[{n}]" for n in range(len(results))]
        named = enumerate(zip(names, results, strict=True))
        written = tuple(self._added(node, number, name, result) for number, (name, result) in named)
        reads = frozenset(value for source in read for value in self._stands[source])
        self._stands[node] = written
        self.operations.append(Operation(reads, written, reads if _may_write_over(node) else frozenset()))
        self.operators.append(node.name)


def _results(node: fx.Node) -> list[Tensor]:
    """The tensors that it gives out."""
    return [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def _is_view(node: fx.Node, results: list[Tensor]) -> bool:
    """Whether its results show what its first input holds, or are that."""
    target, first = node.target, node.args[0] if node.args else None
    if not isinstance(target, torch._ops.OpOverload) or not isinstance(first, fx.Node):
        return False
    if _name(target) in _IDENTITIES:
        return True
    source = first.meta.get("val")
    is_same_type = isinstance(source, Tensor) and all(result.dtype == source.dtype for result in results)
    return is_same_type and _shows_an_input(target)


def _shows_an_input(target: torch._ops.OpOverload) -> bool:
    """Whether what an operator gives out lies in the memory of what it takes, and is not written."""
    aliases = [result.alias_info for result in target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _may_write_over(node: fx.Node) -> bool:
    """Whether each of its numbers depends on the number at its place alone."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or _name(target) in _OVER_THEIR_INPUT


def _name(target: torch._ops.OpOverload) -> str:
    """E.g. `dropout` of `aten::dropout`."""
    return target._schema.name.partition("::")[2]
