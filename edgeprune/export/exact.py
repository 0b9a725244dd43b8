"""What a quantised ONNX file means: its integers computed as numbers that hold them, whatever a CPU makes of them.

Runtimes multiply uint8 by int8 in kernels of their own. On x86 without VNNI these add two products in 16 bits, which
saturate where weights have 8 bits. Here every conversion back to float is written out as arithmetic that no runtime
makes integers of again, and every integer product as one of doubles, in which sums of 2^37 products are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export.floatfile import all_nodes

_WRITTEN_OUT = ("DequantizeLinear", "MatMulInteger")
_LEAST_16, _MOST_16 = -(2**15), 2**15 - 1
_MOST_ACTIVATION = 255
_OURS = "edgeprune.exact/"  # before the names of values in between
# Products that onnxruntime's tools write as one operator of its own: what it does with the state cannot be written out.
_OWN = ("DynamicQuantizeLSTM",)


def meaning(path: Path, out: Path) -> Path | None:
    """Write the file that computes in float what a quantised one means.

    Returns:
        `out`; None where there are no integers; `path` itself where an operator cannot be written out, so that what it
        means is known of no CPU but one whose products do not saturate (`may_saturate`).
    """
    model = onnx.load(path)
    operators = {node.op_type for node in all_nodes(model.graph.node)}
    if operators & set(_OWN):
        return path
    if not operators & set(_WRITTEN_OUT):
        return None
    _write_out(model.graph)
    out.write_bytes(model.SerializeToString())
    return out


def has_own_products(path: Path) -> bool:
    """Whether it has integer products that only its runtime can compute."""
    return any(node.op_type in _OWN for node in all_nodes(onnx.load(path, load_external_data=False).graph.node))


def may_saturate(path: Path) -> tuple[str, ...]:
    """The int8 weights of which two, times the largest uint8, exceed 16 bits in sum: where products may saturate.

    Example: () for weights of 7 bits, as 255 * (64 + 64) = 32640.
    """
    graph = onnx.load(path).graph
    weights = ((tensor.name, tensor) for tensor in graph.initializer if tensor.data_type == TensorProto.INT8)
    return tuple(name for name, tensor in weights if exceeds_16_bits(numpy_helper.to_array(tensor)))


def exceeds_16_bits(weights: np.ndarray) -> bool:
    """Whether two of these int8 weights, each times a uint8, may come to more than 16 bits hold."""
    ordered = np.sort(weights.astype(np.int64), axis=None)
    if ordered.size < 2:
        return False
    least, most = (int(np.minimum(ordered[:2], 0).sum()), int(np.maximum(ordered[-2:], 0).sum()))
    return _MOST_ACTIVATION * most > _MOST_16 or _MOST_ACTIVATION * least < _LEAST_16


def _write_out(graph: onnx.GraphProto) -> None:
    """Put arithmetic in the place of the operators that hand on integers as numbers or multiply them."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: list[onnx.TensorProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and all(name in stored for name in node.input if name):
            made.append(numpy_helper.from_array(dequantized(node, stored), node.output[0]))
        elif node.op_type in _WRITERS:
            nodes += _WRITERS[node.op_type](node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made)
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Forget stored tensors that nothing reads any more."""
    used = {name for node in all_nodes(graph.node) for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def dequantized(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Stored weights as the float32 that they stand for, with a scale of their own for each channel or one for all."""
    values, scale, *zero = (numpy_helper.to_array(stored[name]) for name in node.input if name)
    if scale.ndim == 1 and scale.size > 1:
        aside = _along_channels(node, values.ndim)
        scale, zero = scale.reshape(aside), [one.reshape(aside) for one in zero]
    shifted = values.astype(np.int64) - (zero[0].astype(np.int64) if zero else 0)
    return np.asarray(shifted.astype(np.float32) * scale, np.float32).reshape(values.shape)


def _along_channels(node: onnx.NodeProto, rank: int) -> list[int]:
    """The shape in which a number for each channel goes with values of this rank."""
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % rank
    return [-1 if dim == axis else 1 for dim in range(rank)]


def _dequantize(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """`(x - zero point) * scale` of values with one scale, in float32, which holds 8 and 16 bits exactly."""
    value, scale, *zero = node.input
    nodes, number = _shifted(value, zero, TensorProto.FLOAT, f"{_OURS}{node.output[0]}")
    return [*nodes, helper.make_node("Mul", [number, scale], [node.output[0]])]


def _multiply(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The product of two integer matrices as one of doubles, and an int32 again."""
    left, right, *zeros = node.input
    name = f"{_OURS}{node.output[0]}"
    before, a = _shifted(left, zeros[:1], TensorProto.DOUBLE, f"{name}_left")
    between, b = _shifted(right, zeros[1:], TensorProto.DOUBLE, f"{name}_right")
    product = helper.make_node("MatMul", [a, b], [name])
    return [*before, *between, product, _cast(name, node.output[0], TensorProto.INT32)]


def _shifted(value: str, zero: Sequence[str], kind: int, name: str) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that take the zero point off integers, as numbers of this kind, and the name of the result."""
    nodes, result = [_cast(value, f"{name}_number", kind)], f"{name}_number"
    if not any(zero):
        return nodes, result
    nodes.append(_cast(zero[0], f"{name}_zero", kind))
    nodes.append(helper.make_node("Sub", [result, f"{name}_zero"], [f"{name}_shifted"]))
    return nodes, f"{name}_shifted"


def _cast(value: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], to=kind)


_WRITERS: dict[str, Callable[[onnx.NodeProto], list[onnx.NodeProto]]] = {
    "DequantizeLinear": _dequantize,
    "MatMulInteger": _multiply,
}
