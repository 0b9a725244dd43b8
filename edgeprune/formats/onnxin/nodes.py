"""The graph of an ONNX file as plain records, once nothing stands in it that cannot be taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import inliner, numpy_helper

from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown

MIN_OPSET = 9
_OWN_DOMAINS = {"", "ai.onnx"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_CONTROL = {"If": "a choice between graphs", "Loop": "a loop", "Scan": "a loop", "SequenceMap": "a loop"}
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
    """One operator: the names of its inputs and outputs, "" for those left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def told(self) -> str:
        """As messages name it, e.g. "node '/conv1/Conv' (Conv)"."""
        return f"node {shown(self.name or self.outputs[0])} ({self.op})"


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """An input: its sizes, None where they are free."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A network's operators in the order in which they run; `uses` is how often each value is read."""

    nodes: tuple[Node, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, torch.Tensor]
    uses: Mapping[str, int]
    opset: int


def graph_of(proto: onnx.ModelProto) -> Graph:
    """The graph of a file that holds all of its weights, its own functions written out.

    Raises:
        InputError: operators that cannot be taken, by name; an input or a weight of a type that PyTorch has not.
    """
    opset = _opset(proto)
    graph = _without_functions(proto).graph
    constants = {tensor.name: tensor_of(tensor, f"weight {shown(tensor.name)}") for tensor in graph.initializer}
    if graph.sparse_initializer:
        raise InputError("expected dense weights, got sparse ones")
    nodes, outputs = tuple(map(_node, graph.node)), tuple(value.name for value in graph.output)
    uses = Counter(outputs)
    uses.update(name for node in nodes for name in node.inputs)
    inputs = tuple(_input(value) for value in graph.input if value.name not in constants)
    if not inputs:
        raise InputError("expected a network with an input, got none")
    return Graph(nodes, inputs, outputs, constants, uses, opset)


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


def _node(node: onnx.NodeProto) -> Node:
    told = f"node {shown(node.name or (node.output[0] if node.output else ''))} ({node.op_type})"
    if node.domain not in _OWN_DOMAINS:
        raise InputError(f"{told}: expected an operator of ONNX itself, got one of domain {shown(node.domain)}")
    if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
        raise InputError(f"{told}: expected a float network, got a quantised one; {_FLOAT}")
    if node.op_type in _CONTROL:
        raise InputError(f"{told}: expected one graph that always runs, got {_CONTROL[node.op_type]}")
    if not node.output:
        raise InputError(f"{told}: expected an operator with an output, got none")
    attributes = {a.name: _attribute(a, told) for a in node.attribute}
    return Node(node.name, node.op_type, tuple(node.input), tuple(node.output), attributes)


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


def _input(value: onnx.ValueInfoProto) -> Input:
    where = f"input {shown(value.name)}"
    if not value.type.HasField("tensor_type"):
        raise InputError(f"{where}: expected a tensor, got a sequence, a map or an optional value")
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise InputError(f"{where}: expected an input whose number of dims is stated, got none")
    sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return Input(value.name, torch_dtype(kind.elem_type, where), sizes)
