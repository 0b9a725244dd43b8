"""Pools over windows, over whole images and over dims, and softmax, which goes over a dim too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from edgeprune.export.c.graph import Call, View
from edgeprune.export.c.layers import around
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.walks import strides_of, walk_of
from edgeprune.export.c.windows import pool_window


@rule("MaxPool", "AveragePool")
def _pool(low: Lowering, node: onnx.NodeProto) -> None:
    check_pool(low, node)
    told = options(node, count_include_pad=0)
    x, window = low.view(node.input[0]), pool_window(low, node)
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
    low.check_float(node, 1)
    x, axes = low.view(node.input[0]), axes_of(low, node)
    if not axes:
        low.show(node, x)
        return
    sizes = adjacent(x.shape, axes)
    if sizes is None:
        x, sizes = _brought_last(low, node, x, axes)
    out = low.result(node)
    low.made.add(out, Call(_REDUCTIONS[node.op_type], (x, out, *map(str, sizes))))


def axes_of(low: Lowering, node: onnx.NodeProto) -> list[int]:
    """The dims that a reduction goes over, ascending, without those of one number."""
    shape = low.net.shapes[node.input[0]]
    return sorted(axis for axis in _axes(low, node, len(shape)) if shape[axis] != 1)


def adjacent(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int] | None:
    """The numbers before, within and after dims; None of such as do not lie next to each other."""
    first, last = axes[0], axes[-1]
    if any(shape[dim] != 1 and dim not in axes for dim in range(first, last)):
        return None
    return math.prod(shape[:first]), math.prod(shape[first : last + 1]), math.prod(shape[last + 1 :])


def _brought_last(
    low: Lowering, node: onnx.NodeProto, x: View, axes: Sequence[int]
) -> tuple[View, tuple[int, int, int]]:
    """The numbers with some dims after all others."""
    order = [*(dim for dim in range(len(x.shape)) if dim not in axes), *axes]
    shape, steps = [x.shape[dim] for dim in order], strides_of(x.shape)
    out = low.made.new(shape, "float")
    walk = low.sizes("walk", *walk_of(node, shape, [steps[dim] for dim in order], strides_of(shape)))
    n_last = math.prod(x.shape[dim] for dim in axes)
    return low.made.add(out, Call("copy_f32", (x, out, walk))), (x.n_elements // n_last, n_last, 1)


def _axes(low: Lowering, node: onnx.NodeProto, rank: int) -> set[int]:
    """The dims that a reduction goes over: all where it names none, unless that stands for none."""
    told = options(node, axes=None, noop_with_empty_axes=0)
    given = low.constant(node, 1) if told["axes"] is None else np.array(told["axes"])
    if given is None or not given.size:
        return set() if told["noop_with_empty_axes"] else set(range(rank))
    return {int(axis) % rank for axis in given}


@rule("ArgMax", "ArgMin")
def _places_of_extremes(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_floats(node, node.input)
    x, told = low.view(node.input[0]), options(node, axis=0, select_last_index=0)
    out, sign = low.result(node), "1.0f" if node.op_type == "ArgMax" else "-1.0f"
    sizes = map(str, around(x, told["axis"] % len(x.shape)))
    low.made.add(out, Call("arg_f32", (x, out, *sizes, sign, str(told["select_last_index"]))))


@rule("Softmax", "LogSoftmax")
def _softmax(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    axis = options(node, axis=-1)["axis"] % len(x.shape)
    out = low.result(node)
    kernel = "softmax_f32" if node.op_type == "Softmax" else "log_softmax_f32"
    low.made.add(out, Call(kernel, (x, out, *map(str, around(x, axis)))), over=[x])
