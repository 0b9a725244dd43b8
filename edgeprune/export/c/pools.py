"""Pools over windows, over whole images and over dims, and softmax, which goes over a dim too."""

from __future__ import annotations

import math

import numpy as np
import onnx

from edgeprune.export.c.graph import Call
from edgeprune.export.c.layers import around
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.windows import window_of


@rule("MaxPool", "AveragePool")
def _pool(low: Lowering, node: onnx.NodeProto) -> None:
    check_pool(low, node)
    told = options(node, count_include_pad=0)
    x, window = low.view(node.input[0]), window_of(low, node, told["kernel_shape"])
    out, sizes = low.result(node), low.sizes("window", *window.fields)
    if node.op_type == "MaxPool":
        low.made.add(out, Call("max_pool_f32", (x, out, sizes)))
    else:
        low.made.add(out, Call("average_pool_f32", (x, out, sizes, str(told["count_include_pad"]))))


def check_pool(low: Lowering, node: onnx.NodeProto) -> None:
    """Refuse a max pool whose places are read, and one of columns first."""
    if len(node.output) > 1 and (low.net.readers(node.output[1]) or node.output[1] in low.net.outputs):
        raise refusal(node, "whose indices are read")


@rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(low: Lowering, node: onnx.NodeProto) -> None:
    x, out = low.view(node.input[0]), low.result(node)
    kernel = "mean_f32" if node.op_type == "GlobalAveragePool" else "max_f32"
    low.made.add(out, Call(kernel, (x, out, str(math.prod(x.shape[:2])), str(math.prod(x.shape[2:])), "1")))


_REDUCTIONS = {"ReduceMean": "mean_f32", "ReduceSum": "sum_f32", "ReduceMax": "max_f32", "ReduceMin": "min_f32"}


@rule(*_REDUCTIONS)
def _reduce(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    sizes = reduced(low, node)
    if sizes is None:
        low.show(node, x)
        return
    out = low.result(node)
    low.made.add(out, Call(_REDUCTIONS[node.op_type], (x, out, *map(str, sizes))))


def reduced(low: Lowering, node: onnx.NodeProto) -> tuple[int, int, int] | None:
    """The numbers before, within and after the dims that a reduction goes over; None of one that leaves all."""
    shape = low.net.shapes[node.input[0]]
    axes = sorted(axis for axis in _axes(low, node, len(shape)) if shape[axis] != 1)
    if not axes:
        return None
    first, last = axes[0], axes[-1]
    if any(shape[dim] != 1 and dim not in axes for dim in range(first, last)):
        raise refusal(node, "over dims that are not next to each other")
    return math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])


def _axes(low: Lowering, node: onnx.NodeProto, rank: int) -> set[int]:
    """The dims that a reduction goes over: all where it names none, unless that stands for none."""
    told = options(node, axes=None, noop_with_empty_axes=0)
    given = low.constant(node, 1) if told["axes"] is None else np.array(told["axes"])
    if given is None or not given.size:
        return set() if told["noop_with_empty_axes"] else set(range(rank))
    return {int(axis) % rank for axis in given}


@rule("Softmax", "LogSoftmax")
def _softmax(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    axis = options(node, axis=-1)["axis"] % len(x.shape)
    out = low.result(node)
    kernel = "softmax_f32" if node.op_type == "Softmax" else "log_softmax_f32"
    low.made.add(out, Call(kernel, (x, out, *map(str, around(x, axis)))), over=[x])
