"""Convolutions, linear layers and batch norm."""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeprune.export.c.graph import Call, View, literal
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.walks import aligned, walk_of
from edgeprune.export.c.windows import Window, window_of


@rule("Conv")
def _conv(low: Lowering, node: onnx.NodeProto) -> None:
    weights, bias = conv_weights(low, node)
    x, window = low.view(node.input[0]), window_of(low, node, weights.shape[2:])
    out = low.result(node)
    held = low.made.hold(weights, "float"), low.made.hold(bias, "float")
    low.made.add(out, Call("conv_f32", (x, *held, out, low.sizes("window", *window.fields))))


def conv_weights(low: Lowering, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(out, in / groups, *kernel)` and a bias `(out,)`, as floats."""
    weights, bias = low.constant(node, 1), low.constant(node, 2)
    assert weights is not None
    return weights, np.zeros(len(weights), np.float32) if bias is None else bias


@rule("ConvTranspose")
def _conv_transpose(low: Lowering, node: onnx.NodeProto) -> None:
    weights, bias, window = transposed_weights(low, node)
    x, out = low.view(node.input[0]), low.result(node)
    held = low.made.hold(weights, "float"), low.made.hold(bias, "float")
    low.made.add(out, Call("conv_transpose_f32", (x, *held, out, low.sizes("window", *window.fields))))


def transposed_weights(low: Lowering, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray, Window]:
    """Weights of a transposed convolution as those of a plain one, `(out, in / groups, *kernel)`, a bias `(out,)`, and
    the window that each number is spread over."""
    told = options(node, auto_pad="NOTSET", output_shape=None)
    if told["auto_pad"] not in ("NOTSET", "VALID") or told["output_shape"]:
        raise refusal(node, "whose padding is not told in numbers")
    weights, bias = low.constant(node, 1), low.constant(node, 2)
    assert weights is not None
    window = window_of(low, node, weights.shape[2:])
    apart = weights.reshape(window.groups, -1, *weights.shape[1:]).swapaxes(1, 2)
    plain = np.ascontiguousarray(apart.reshape(-1, *apart.shape[2:]))
    return plain, np.zeros(len(plain), np.float32) if bias is None else bias, window


@rule("Gemm", "MatMul")
def _linear(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_float(node)
    if node.op_type == "MatMul" and not _is_linear(low, node):
        _product(low, node)
        return
    weights, bias = linear_weights(low, node)
    x, out = low.view(node.input[0]), low.result(node)
    n_out, n_in = weights.shape
    held = low.made.hold(weights, "float"), low.made.hold(bias, "float")
    low.made.add(out, Call("linear_f32", (x, *held, out, str(x.n_elements // n_in), str(n_in), str(n_out))))


def _is_linear(low: Lowering, node: onnx.NodeProto) -> bool:
    """Whether each row is multiplied by one stored matrix."""
    left, right = node.input
    return left not in low.net.known and right in low.net.known and low.net.known[right].ndim == 2  # noqa: PLR2004


def _product(low: Lowering, node: onnx.NodeProto) -> None:
    """Matrices by matrices, both computed or one of them stored, repeated as numpy does it."""
    operands, shapes = [low.operand(name) for name in node.input], [low.net.shapes[name] for name in node.input]
    left, right = (1, *shapes[0]) if len(shapes[0]) == 1 else shapes[0], shapes[1]
    right = (*right, 1) if len(right) == 1 else right
    wide = np.broadcast_shapes(left[:-2], right[:-2])
    steps = [[step * math.prod(shape[-2:]) for step in aligned(shape[:-2], wide)] for shape in (left, right)]
    out, walk = low.result(node), low.sizes("walk", *walk_of(node, wide, *steps))
    low.made.add(out, Call("matmul_f32", (*operands, out, walk, str(left[-2]), str(left[-1]), str(right[-1]))))


def linear_weights(low: Lowering, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(out, in)` and a bias `(out,)`, as floats."""
    if node.input[0] in low.net.known:
        raise refusal(node, "of a constant by a computed value")
    weights = low.constant(node, 1)
    assert weights is not None
    if weights.ndim != 2:
        raise refusal(node, f"with weights of {weights.ndim} dims")
    if node.op_type == "MatMul":
        return np.ascontiguousarray(weights.T), np.zeros(weights.shape[1], np.float32)
    told = options(node, alpha=1.0, beta=1.0, transA=0, transB=0)
    if told["transA"]:
        raise refusal(node, "of a transposed value")
    weights = weights if told["transB"] else weights.T
    scaled = weights * np.float32(told["alpha"]), _gemm_bias(low, node, len(weights)) * np.float32(told["beta"])
    return np.ascontiguousarray(scaled[0], np.float32), np.ascontiguousarray(scaled[1], np.float32)


def _gemm_bias(low: Lowering, node: onnx.NodeProto, n_out: int) -> np.ndarray:
    """`(out,)`, zeros where there is none."""
    bias = low.constant(node, 2)
    if bias is None:
        return np.zeros(n_out, np.float32)
    if bias.size not in (1, n_out) or bias.size != max(bias.shape[-1:], default=1):
        raise refusal(node, "with a bias for each row")
    return np.broadcast_to(bias.reshape(-1), (n_out,))


@rule("LayerNormalization")
def _layer_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """Over all dims from one on, with a scale and a shift for each number of these."""
    shape = low.net.shapes[node.input[0]]
    told = options(node, axis=-1, epsilon=1e-5, stash_type=1)
    if any(low.net.readers(name) or name in low.net.outputs for name in node.output[1:] if name):
        raise refusal(node, "whose mean is read")
    axis = told["axis"] % len(shape)
    rows, size = math.prod(shape[:axis]), math.prod(shape[axis:])
    given = [low.constant(node, place) for place in (1, 2)]
    scale, shift = (
        np.full(size, missing, np.float32) if one is None else np.broadcast_to(one, shape[axis:]).reshape(-1)
        for one, missing in zip(given, (1.0, 0.0), strict=True)
    )
    _normalize(low, node, (rows, size, told["epsilon"]), (scale, shift, (rows, size, 1)))


@rule("InstanceNormalization", "GroupNormalization")
def _instance_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """Over each image, or over groups of these, with a scale and a shift for each channel."""
    n, channels, *rest = low.net.shapes[node.input[0]]
    told = options(node, epsilon=1e-5, num_groups=channels)
    rows, inner = n * told["num_groups"], math.prod(rest)
    scale, shift = (np.asarray(low.constant(node, place)) for place in (1, 2))
    if len(scale) != channels:  # a number for each group, as before operator set 21
        scale, shift = (one.repeat(channels // len(one)) for one in (scale, shift))
    size = n * channels * inner // rows
    _normalize(low, node, (rows, size, told["epsilon"]), (scale, shift, (n, channels, inner)))


def _normalize(
    low: Lowering,
    node: onnx.NodeProto,
    rows: tuple[int, int, float],
    affine: tuple[np.ndarray, np.ndarray, tuple[int, int, int]],
) -> None:
    """Rows `(n, size, epsilon)` of their own mean and deviation, then scales and shifts of `(outer, n, inner)`."""
    low.check_float(node)
    x, out = low.view(node.input[0]), low.result(node)
    scale, shift, sizes = affine
    n_rows, size, epsilon = rows
    held = low.made.hold(scale, "float"), low.made.hold(shift, "float")
    low.made.add(
        out,
        Call("normalized_f32", (x, out, str(n_rows), str(size), literal(epsilon))),
        Call("affine_f32", (out, *held, out, *map(str, sizes))),
        over=[x],
    )


@rule("BatchNormalization")
def _batch_norm(low: Lowering, node: onnx.NodeProto) -> None:
    """`scale * x + shift` for each channel; the numbers are worked out in double."""
    told = options(node, epsilon=1e-5, training_mode=0)
    if told["training_mode"]:
        raise refusal(node, "in training mode")
    given = [low.constant(node, place) for place in range(1, 5)]
    weight, bias, mean, variance = (np.asarray(one, np.float64) for one in given)
    scale = weight / np.sqrt(variance + told["epsilon"])
    x, out = low.view(node.input[0]), low.result(node)
    outer, channels, inner = around(x, 1)
    held = (low.made.hold(one.astype(np.float32), "float") for one in (scale, bias - mean * scale))
    low.made.add(out, Call("affine_f32", (x, *held, out, str(outer), str(channels), str(inner))), over=[x])


def around(x: View, axis: int) -> tuple[int, int, int]:
    """The numbers before, along and after one dim."""
    return math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
