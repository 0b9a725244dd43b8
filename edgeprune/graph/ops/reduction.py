"""Reductions over dims, softmax and pooling."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeprune.graph import binding, reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, contract
from edgeprune.graph.labels import Layer, Value, pack, remainders
from edgeprune.graph.ops.contraction import reshaped
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting

aten = torch.ops.aten


def _reduced_dims(call: Call) -> tuple[int, ...]:
    rank = len(call.input.shape)
    dim = call.get("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(rank))
    return tuple(d % rank for d in (dim if isinstance(dim, (list, tuple)) else (dim,)))


def _mean_rescaled(edit: Rewriting, call: Call) -> None:
    """A mean over kept units divides by their number, the original by all: multiply by kept / original.

    Where none is left, of one part of several, their sum is what the mean of zeros is, and a mean of nothing is NaN.
    """
    shape, kept = call.input.shape, edit.kept_shape(call.input)
    ratio = 1.0
    for dim in _reduced_dims(call):
        ratio *= kept[dim] / shape[dim]
    if ratio == 0.0:
        arguments = (edit.source(call), list(_reduced_dims(call)), call.get("keepdim", False))
        edit.replace(call, aten.sum.dim_IntList, arguments, dtype=call["dtype"])
    elif ratio != 1.0:
        edit.scale(call, ratio)


@operator("linalg_vector_norm", "norm", kind=Kind.REDUCTION)
def vector_norm(analysis: Labelling, call: Call) -> Any:
    """Zeros add nothing to a norm, unless it is of a negative order."""
    order = call.get("ord", call.get("p"))
    return other_reduction(analysis, call) if order is not None and order < 0 else total(analysis, call)


@operator("mean", kind=Kind.REDUCTION, rewrite=_mean_rescaled)
@operator("sum", "nansum", "any", kind=Kind.REDUCTION)
def total(analysis: Labelling, call: Call) -> Value:
    """Exact where removed units read zero; a mean is rescaled to the original count."""
    x, reduced = call.input, _reduced_dims(call)
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    kept = tuple(letter for d, letter in enumerate(letters) if d not in reduced)
    bare = tuple(n for d, n in enumerate(x.shape) if d not in reduced)
    return _laid_out(contract(analysis, [Operand(x, letters)], kept, bare), call)


def _laid_out(value: Value, call: Call) -> Value:
    """With `keepdim` the reduced dims come back with size 1."""
    return Value(call.shape, tuple(pack(layer.labels.reshape(call.shape), layer.zero) for layer in value.layers))


@operator("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "topk", "sort", kind=Kind.SCAN)
@operator(
    "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "argmax", "argmin", "median", "all", "var_mean",
    "std_mean", "kthvalue", "mode",
    kind=Kind.REDUCTION,
)  # fmt: skip
def other_reduction(analysis: Labelling, call: Call) -> Any:
    """Units along the reduced dims are locked: the result depends on which and how many there are."""
    if len(call.values) > 1:  # max(a, b) is pointwise
        from edgeprune.graph.ops.pointwise import pointwise

        return pointwise(analysis, call)
    x, reduced = call.input, _reduced_dims(call)
    for layer in x.layers:
        for dim in reduced:
            analysis.fix(layer, dim, reasons.ALL_UNITS)
    rest = [d for d in range(len(x.shape)) if d not in reduced]
    keeps_zero = call.name in ("amax", "amin", "max", "min", "var", "std", "cumsum")
    return _each_result(call, x, rest, keeps_zero)


def _each_result(call: Call, x: Value, rest: list[int], keeps_zero: bool) -> Any:
    """The value, or one for each output, with the labels of the dims in `rest`."""

    def result(shape: tuple[int, ...], val: Any) -> Value:
        zero = keeps_zero and (val.is_floating_point() or val.dtype is torch.bool)  # the place of a zero may be any
        same_rank = len(shape) == len(x.shape)
        dims = {d: d if same_rank else position for position, d in enumerate(rest)}
        return Value(shape, tuple(Layer(y.labels, y.zero and zero) for y in remainders(x, dims, shape)))

    val = call.node.meta["val"]
    if binding.is_shape(call.shape):
        return result(call.shape, val)
    return [result(shape, part) for shape, part in zip(call.shape, val, strict=True)]


@operator("softmax", "log_softmax", "_softmax", "_log_softmax", kind=Kind.SCAN)
def softmax(analysis: Labelling, call: Call) -> Value:
    """The softmaxed dim stays whole; elsewhere labels pass, but a removed unit no longer reads zero."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    for layer in x.layers:
        analysis.fix(layer, dim, reasons.NORMALISED)
    return _each_result(call, x, [d for d in range(len(x.shape)) if d != dim], keeps_zero=False)


def n_window_dims(name: str) -> int:
    """How many trailing dims a pooling or resampling operator works on, as its name tells: `max_pool2d`."""
    return next(n for n in (1, 2, 3) if f"{n}d" in name)


@operator(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "max_pool1d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", kind=Kind.WINDOW,
)  # fmt: skip
def windowed(analysis: Labelling, call: Call) -> Any:
    """Works on trailing positions, which stay whole; all dims before them pass."""
    x, rank = call.input, len(call.input.shape)
    trailing = range(rank - n_window_dims(call.name), rank)
    for layer in x.layers:
        for dim in trailing:
            analysis.fix(layer, dim, reasons.ALL_POSITIONS)
    return _each_result(call, x, [d for d in range(rank) if d not in trailing], keeps_zero=True)


@operator("col2im", kind=Kind.ASSEMBLY)
def fold(analysis: Labelling, call: Call) -> Value:
    """`(n, channels * kernel, positions)` -> `(n, channels, height, width)`: only channels are units."""
    x = call.input
    offsets = math.prod(call["kernel_size"])
    batch = x.shape[:-2]
    split = reshaped(x, (*batch, x.shape[-2] // offsets, offsets, x.shape[-1]))
    rank = len(split.shape)
    for layer in split.layers:
        for dim in (rank - 2, rank - 1):
            analysis.fix(layer, dim, reasons.WINDOWS)
    return _each_result(call, split, list(range(rank - 2)), keeps_zero=True)
