"""Which whole numbers the inputs of an ONNX graph may hold: those that its Gathers and one-hot codes take."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

_SAME = {"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Split"}
_INDEXED = {"Gather", "GatherElements", "GatherND"}


def index_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """For every input that indexes a dim of a tensor the least of their sizes: its numbers are below that."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    numbers = {tensor.name: tensor for tensor in graph.initializer if not tensor.dims or tuple(tensor.dims) == (1,)}
    origin = {value.name: value.name for value in graph.input if value.name not in sizes}
    bounds: dict[str, int] = {}
    for node in graph.node:
        bound = _bound(node, sizes, numbers)
        index = node.input[1] if node.op_type in _INDEXED else node.input[0] if node.input else ""
        if bound is not None and index in origin:
            name = origin[index]
            bounds[name] = min(bound, bounds.get(name, bound))
        if node.op_type in _SAME and node.input[0] in origin:
            origin.update(dict.fromkeys(node.output, origin[node.input[0]]))
    return bounds


def _bound(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]], numbers: dict[str, onnx.TensorProto]) -> int | None:
    """How many entries a node's indices choose among; None for what indexes nothing of a known size."""
    if node.op_type in _INDEXED:
        shape = sizes.get(node.input[0])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return shape[axis] if shape else None
    if node.op_type == "OneHot" and node.input[1] in numbers:
        return int(numpy_helper.to_array(numbers[node.input[1]]).reshape(-1)[0])
    return None
