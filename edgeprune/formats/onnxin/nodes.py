"""The graph of an ONNX file as plain records, once nothing stands in it that cannot be taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import inliner, numpy_helper

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.batchdims import batch_dims
from edgeprune.lines import error_line, shown

MIN_OPSET = 9
_OWN_DOMAINS = {"", "ai.onnx"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_LOOPS = {"Loop", "Scan", "SequenceMap"}
_FLOAT = "compress the float file that it was made from, and quantise what comes out"
_ATTRIBUTES = {
    onnx.AttributeProto.FLOAT: lambda a: a.f,
    onnx.AttributeProto.INT: lambda a: a.i,
    onnx.AttributeProto.STRING: lambda a: a.s.decode("utf-8", "replace"),
    onnx.AttributeProto.TENSOR: lambda a: a.t,
    onnx.AttributeProto.FLOATS: lambda a: list(a.floats),
    onnx.AttributeProto.INTS: lambda a: list(a.ints),
    onnx.AttributeProto.STRINGS: lambda a: [s.decode("utf-8", "replace") for s in a.strings],
}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator: the names of its inputs and outputs, "" for those left out; `branches` are those of an If."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    branches: Mapping[str, Branch] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """As messages name it, e.g. "node '/conv1/Conv' (Conv)"."""
        return f"node {shown(self.name or self.outputs[0])} ({self.op})"


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A graph that an If may run; it reads what stands around it, and gives the If's outputs."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """An input: its sizes, the batch first, None where they are free; in the file the batch is dim `batch_dim`."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]
    batch_dim: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network's operators in the order in which they run; `uses` is how often each value is read.

    `batch_dims` are those of inputs and outputs whose batch is not their first size; `settled` are inputs of the file
    that have become constants.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, torch.Tensor]
    uses: Mapping[str, int]
    opset: int
    batch_dims: Mapping[str, int] = field(default_factory=dict)
    settled: Mapping[str, torch.Tensor] = field(default_factory=dict)


def graph_of(proto: onnx.ModelProto) -> Graph:
    """The graph of a file that holds all of its weights, its own functions written out.

    Raises:
        InputError: operators that cannot be taken, by name; an input or a weight of a type that PyTorch has not.
    """
    opset = _opset(proto)
    graph = _without_functions(proto).graph
    taken = {value.name for value in graph.input} | set(_own_names(graph))
    constants = _constants(graph, {})
    nodes, outputs = _Reader(constants, taken).nodes(graph, {}), tuple(value.name for value in graph.output)
    given = [value for value in graph.input if value.name not in constants]
    if not given:
        raise InputError("expected a network with an input, got none")
    dims = batch_dims(graph, given)
    inputs = _of_one_batch([_input(value, dims.get(value.name, 0)) for value in given])
    return Graph(nodes, inputs, outputs, constants, Counter([*outputs, *_read(nodes)]), opset, dims)


def _read(nodes: Iterable[Node]) -> Iterator[str]:
    """What nodes read, as often as they do, in branches too."""
    for node in nodes:
        yield from node.inputs
        for branch in node.branches.values():
            yield from branch.outputs
            yield from _read(branch.nodes)


def _own_names(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a graph gives to values, without those of graphs within it."""
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _constants(graph: onnx.GraphProto, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    if graph.sparse_initializer:
        raise InputError("expected dense weights, got sparse ones")
    return {
        names.get(tensor.name, tensor.name): tensor_of(tensor, f"weight {shown(tensor.name)}")
        for tensor in graph.initializer
    }


def _opset(proto: onnx.ModelProto) -> int:
    found = [entry.version for entry in proto.opset_import if entry.domain in _OWN_DOMAINS]
    opset = found[0] if found else 0
    if opset < MIN_OPSET:
        raise InputError(f"expected operators of opset {MIN_OPSET} or later, got {opset or 'none'}; convert it with "
                         "onnx.version_converter")  # fmt: skip
    return int(opset)


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The file with the functions that it defines written out where they are called."""
    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:
        raise InputError(f"expected functions that can be written out, got {error_line(error)}") from error


class _Reader:
    """Reads the nodes of a graph and of the branches in it, whose weights it adds to the graph's.

    Branches may give one name to several values: each but the first has another here.
    """

    def __init__(self, constants: dict[str, torch.Tensor], taken: set[str]) -> None:
        self.constants, self.taken = constants, taken
        self._last: Counter[str] = Counter()  # the number that a name was given last

    def nodes(self, graph: onnx.GraphProto, names: Mapping[str, str]) -> tuple[Node, ...]:
        """All of them, their values by the names that `names` has for them."""
        return tuple(self._node(node, names) for node in graph.node)

    def _node(self, node: onnx.NodeProto, names: Mapping[str, str]) -> Node:
        told = f"node {shown(node.name or (node.output[0] if node.output else ''))} ({node.op_type})"
        _check_taken(node, told)
        given, out = (tuple(names.get(name, name) for name in side) for side in (node.input, node.output))
        graphs = {a.name: a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH and node.op_type == "If"}
        attributes = {a.name: _attribute(a, told) for a in node.attribute if a.name not in graphs}
        branches = {name: self._branch(graph, names) for name, graph in graphs.items()}
        if node.op_type == "If":
            _check_branches(branches, len(given), len(out), told)
        return Node(node.name, node.op_type, given, out, attributes, branches)

    def _branch(self, graph: onnx.GraphProto, names: Mapping[str, str]) -> Branch:
        names = {**names, **{name: self._free(name) for name in _own_names(graph)}}
        self.constants.update(_constants(graph, names))
        return Branch(self.nodes(graph, names), tuple(names.get(value.name, value.name) for value in graph.output))

    def _free(self, name: str) -> str:
        free = name
        while free in self.taken:
            self._last[name] += 1
            free = f"{name}_{self._last[name]}"
        self.taken.add(free)
        return free


def _check_taken(node: onnx.NodeProto, told: str) -> None:
    """Raise InputError for a node that stands for no operator on floats that always runs."""
    if node.domain not in _OWN_DOMAINS:
        raise InputError(f"{told}: expected an operator of ONNX itself, got one of domain {shown(node.domain)}")
    if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
        raise InputError(f"{told}: expected a float network, got a quantised one; {_FLOAT}")
    if node.op_type in _LOOPS:
        raise InputError(f"{told}: expected one graph that always runs, got a loop")
    if not node.output:
        raise InputError(f"{told}: expected an operator with an output, got none")


def _check_branches(branches: Mapping[str, Branch], n_inputs: int, n_outputs: int, told: str) -> None:
    wanted = ("then_branch", "else_branch")
    if n_inputs != 1 or sorted(branches) != sorted(wanted) or any(
        len(branch.outputs) != n_outputs for branch in branches.values()
    ):  # fmt: skip
        raise InputError(f"{told}: expected a condition and two graphs of {n_outputs} outputs, got others")


def _attribute(attribute: onnx.AttributeProto, told: str) -> Any:
    read = _ATTRIBUTES.get(attribute.type)
    if read is None:
        raise InputError(f"{told}: attribute {shown(attribute.name)}: expected numbers, a text or a tensor, got others")
    value = read(attribute)
    if isinstance(value, onnx.TensorProto):
        return tensor_of(value, f"{told}: attribute {shown(attribute.name)}").numpy()
    return value


def tensor_of(proto: onnx.TensorProto, where: str) -> torch.Tensor:
    """A tensor of the file as PyTorch's; raises InputError where it has none such, or its numbers are damaged."""
    try:
        array = numpy_helper.to_array(proto)
        return torch.from_numpy(np.array(array))
    except Exception as error:
        raise InputError(f"{where}: expected numbers of its shape and type, got {error_line(error)}") from error


def torch_dtype(code: int, where: str) -> torch.dtype:
    """The type of an ONNX number; raises InputError where PyTorch has none such."""
    try:
        return torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(code))).dtype
    except Exception as error:
        raise InputError(f"{where}: expected a type that PyTorch has, got ONNX type {code}") from error


def _of_one_batch(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs, all of one row where a state is: it holds the file to that, though others leave their batch free."""
    if not any(given.batch_dim and given.sizes[0] == 1 for given in inputs):
        return tuple(inputs)
    return tuple(replace(given, sizes=(given.sizes[0] or 1, *given.sizes[1:])) for given in inputs)


def _input(value: onnx.ValueInfoProto, batch_dim: int) -> Input:
    where = f"input {shown(value.name)}"
    if not value.type.HasField("tensor_type"):
        raise InputError(f"{where}: expected a tensor, got a sequence, a map or an optional value")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InputError(f"{where}: expected an input whose number of dims is stated, got none")
    sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    if batch_dim:
        sizes.insert(0, sizes.pop(batch_dim))
    return Input(value.name, torch_dtype(kind.elem_type, where), tuple(sizes), batch_dim)
