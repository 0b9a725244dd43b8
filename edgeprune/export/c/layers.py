"""Convolutions, linear layers and batch norm."""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeprune.export.c.graph import Call, View
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.windows import window_of


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


@rule("Gemm", "MatMul")
def _linear(low: Lowering, node: onnx.NodeProto) -> None:
    weights, bias = linear_weights(low, node)
    x, out = low.view(node.input[0]), low.result(node)
    n_out, n_in = weights.shape
    held = low.made.hold(weights, "float"), low.made.hold(bias, "float")
    low.made.add(out, Call("linear_f32", (x, *held, out, str(x.n_elements // n_in), str(n_in), str(n_out))))


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
