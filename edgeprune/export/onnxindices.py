"""Which whole numbers the inputs of an ONNX graph may hold: those that its Gathers and one-hot codes take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import numpy_helper

from edgeprune.graph.names import CUT_ID
from edgeprune.records import Vocabulary

_SAME = {"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Split"}
_INDEXED = {"Gather", "GatherElements", "GatherND"}
_WHOLE = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def index_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """For every input that indexes a dim of a tensor the least of their sizes: its numbers are below that."""
    constants = _constants(graph)
    bounds: dict[str, float] = {}
    for name, node in _indexed_by_inputs(graph):
        bounds[name] = min(_bound(node, constants), bounds.get(name, math.inf))
    return {name: int(bound) for name, bound in bounds.items() if bound < math.inf}


def kept_ids(graph: onnx.GraphProto) -> dict[str, Vocabulary]:
    """The ids that every input may hold of which others were cut, without one that stands for them."""
    constants = _constants(graph)
    found = {}
    for name, node in _indexed_by_inputs(graph):
        table = constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type not in _WHOLE or math.prod(table.dims) != _bound(node, constants):
            continue
        numbers = numpy_helper.to_array(table).reshape(-1)  # (n,), or a table of one column
        keep = (numbers != CUT_ID).nonzero()[0]
        if len(keep) < len(numbers):
            found[name] = Vocabulary(len(numbers), tuple(keep.tolist()))
    return found


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer}


def _indexed_by_inputs(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """The inputs whose own numbers a node may index by, with the node."""
    constants = _constants(graph)
    origin = {value.name: value.name for value in graph.input if value.name not in constants}
    for node in graph.node:
        name = origin.get(_index(node))
        if name is not None:
            yield name, node
        if node.op_type in _SAME and node.input[0] in origin:
            origin.update(dict.fromkeys(node.output, origin[node.input[0]]))


def _index(node: onnx.NodeProto) -> str:
    """The value by which a node would index."""
    if node.op_type in _INDEXED:
        return str(node.input[1])
    return str(node.input[0]) if node.input else ""


def _bound(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> float:
    """How many entries a node's indices choose among; infinity for what indexes nothing of a known size."""
    if node.op_type in _INDEXED:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        indexed = constants.get(node.input[0])
        return indexed.dims[axis] if indexed is not None and indexed.dims else math.inf
    depth = constants.get(node.input[1]) if node.op_type == "OneHot" else None
    if depth is None or tuple(depth.dims) not in ((), (1,)):
        return math.inf
    return int(numpy_helper.to_array(depth).reshape(-1)[0])
