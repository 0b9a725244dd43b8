"""Which whole numbers the inputs of an ONNX graph may hold: those that its Gathers and one-hot codes take."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

_SAME = {"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Split"}
_INDEXED = {"Gather", "GatherElements", "GatherND"}


def index_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """For every input that indexes a dim of a tensor the least of their sizes: its numbers are below that."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    origin = {value.name: value.name for value in graph.input if value.name not in constants}
    bounds: dict[str, float] = {}
    for node in graph.node:
        name = origin.get(_index(node))
        if name is not None:
            bounds[name] = min(_bound(node, constants), bounds.get(name, math.inf))
        if node.op_type in _SAME and node.input[0] in origin:
            origin.update(dict.fromkeys(node.output, origin[node.input[0]]))
    return {name: int(bound) for name, bound in bounds.items() if bound < math.inf}


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
