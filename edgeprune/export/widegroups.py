"""Grouped convolutions of an int8 file with fewer, wider groups: the same numbers, sooner.

onnxruntime copies and multiplies each group for itself. With eight channels a group, as in RegNet or ResNeXt, an int8
convolution takes more time than in float, and up to five times as much as one with 32, most of them zeros.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

# What starting a group costs at one position, in multiplications: fitted to 3x3 convolutions of 32 to 448 channels in
# 4 to 112 groups, on an x86 CPU with VNNI.
_MACS_OF_A_GROUP = 14_000


def widen_groups(graph: onnx.GraphProto) -> None:
    """Join neighbouring groups of int8 convolutions, with zeros between them, where that takes less time.

    Depthwise convolutions stay as they are: they have a kernel of their own. So do those whose weights are in float,
    or belong to several operators.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    makers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        makers.update(dict.fromkeys(node.output, node))
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in graph.node:
        source = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if source is None or source.op_type != "DequantizeLinear" or readers[node.input[1]] > 1:
            continue
        weight = stored.get(source.input[0])
        if weight is not None and readers[weight.name] == 1 and _is_symmetric(source, stored):
            _widen(node, weight)


def _is_symmetric(source: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    """Whether the integer 0 stands for 0."""
    if len(source.input) < 3 or not source.input[2]:  # noqa: PLR2004 - the zero point is the third
        return True
    zero_point = stored.get(source.input[2])
    return zero_point is not None and not numpy_helper.to_array(zero_point).any()


def _widen(node: onnx.NodeProto, weight: onnx.TensorProto) -> None:
    group = next((entry for entry in node.attribute if entry.name == "group"), None)
    if group is None:
        return
    values = numpy_helper.to_array(weight)
    n_groups = fewer_groups(group.i, values.shape)
    if n_groups < group.i:
        weight.CopyFrom(numpy_helper.from_array(_joined(values, group.i, group.i // n_groups), weight.name))
        group.i = n_groups


def fewer_groups(n_groups: int, shape: tuple[int, ...]) -> int:
    """How many groups take the least time, a divisor of `n_groups`, for weights `(out, in of a group, *kernel)`."""
    if shape[0] == n_groups and shape[1] == 1:
        return n_groups
    macs = math.prod(shape) * n_groups  # of one position, in a single group
    divisors = [n for n in range(1, n_groups + 1) if n_groups % n == 0]
    return min(divisors, key=lambda n: n * _MACS_OF_A_GROUP + macs / n)


def _joined(values: np.ndarray, n_groups: int, n_joined: int) -> np.ndarray:
    """`(out, in, *kernel)` as `(out, n_joined * in, *kernel)`: each group reads its own channels of the joined ones."""
    out, width, *kernel = values.shape
    own = np.arange(out) // (out // n_groups) % n_joined
    wide = np.zeros((out, n_joined, width, *kernel), values.dtype)
    wide[np.arange(out), own] = values
    return wide.reshape(out, n_joined * width, *kernel)
