"""Operators that only move data: the very same operator runs on the labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from edgeprune.graph import binding, reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import FIXED, Layer, Value, pack, pending_over, reshape_labels, shuffle_groups, with_labels
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.reasons import Cause
from edgeprune.graph.rules import Labelling, Rewriting

aten = torch.ops.aten


_RESHAPES = {"view", "_unsafe_view", "reshape", "flatten", "unflatten"}
_REORDERS = {"roll", "flip"}
SPLITS = (
    *("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"),
    *("hsplit", "vsplit", "dsplit"),
)
SPLIT_DIMS = {"hsplit": 1, "vsplit": 0, "dsplit": 2}


def _run(call: Call, source: Value, labels: Tensor) -> Any:
    """The call's own operator on `labels` in place of `source`; constants stay what they are."""
    if call.name in _RESHAPES:
        return reshape_labels(labels, call.shape)
    if call.name in _REORDERS and not set(Layer(labels, False).dims) & {d % labels.dim() for d in call["dims"]}:
        return labels
    return _run_on(call, source, labels.detach())  # an in-place form may change the shape of what it gets


def _run_on(call: Call, source: Value, shown: Tensor) -> Any:
    def replace(value: Value) -> Tensor:
        if value is source:
            return shown
        assert value.const is not None
        return value.const

    args = torch.utils._pytree.tree_map_only(Value, replace, call.args)
    schema = call.operator._schema.arguments
    positional = [args[a.name] for a in schema if not a.kwarg_only]
    keywords = {a.name: args[a.name] for a in schema if a.kwarg_only and a.name not in ("dtype", "layout", "device")}
    try:
        return call.operator(*positional, **keywords)
    except (RuntimeError, NotImplementedError):
        # Some kernels take floats only; labels are far below 2**53.
        positional = [a.to(torch.float64) if a is shown else a for a in positional]
        result = call.operator(*positional, **keywords)
        return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(torch.int64), result)


def moved(analysis: Labelling, call: Call) -> Any:
    """Labels go where the elements go."""
    source = call.input
    moved_layers = [(_run(call, source, layer.labels), layer) for layer in source.layers]
    if binding.is_shape(call.shape):
        return analysis.value(call.shape, [with_labels(layer, labels) for labels, layer in moved_layers])
    return [
        analysis.value(shape, [with_labels(layer, labels[index]) for labels, layer in moved_layers])
        for index, shape in enumerate(call.shape)
    ]


# -- without arguments that depend on sizes ---------------------------------------------------------------------------

operator(
    "permute", "transpose", "t", "numpy_T", "mT", "mH", "adjoint", "swapaxes", "swapdims", "movedim", "moveaxis",
    "squeeze", "unsqueeze", "flip", "flatten", "fliplr", "flipud", "atleast_2d",
    kind=Kind.MOVE,
)(moved)  # fmt: skip


@operator(
    "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "float", "double", "half",
    "positive", kind=Kind.COPY,
)  # fmt: skip
def same(analysis: Labelling, call: Call) -> Value:
    """The same elements at the same places."""
    return Value(call.shape, call.input.layers)


def _rewrite_channel_shuffle(edit: Rewriting, call: Call) -> None:
    """The kept channels in their new order; their number need not be divisible by the groups any more.

    Where they still are shuffled it stays a shuffle: runtimes move its blocks faster than channels one by one.
    """
    order = np.arange(call.input.shape[1]).reshape(call["groups"], -1).T.reshape(-1)
    positions = _positions(edit, call, 1, order)
    groups = shuffle_groups(positions.tolist())
    if groups is None:
        edit.select(call, 1, positions)
    else:
        edit.set(call, "groups", groups)


@operator("channel_shuffle", "native_channel_shuffle", kind=Kind.MOVE, rewrite=_rewrite_channel_shuffle)
def channel_shuffle(analysis: Labelling, call: Call) -> Any:
    """Labels go along."""
    whole_where_free(analysis, call, 1)
    return moved(analysis, call)


@operator("pixel_shuffle", "pixel_unshuffle", "unfold", "rot90", "repeat_interleave", kind=Kind.ASSEMBLY)
def moved_in_blocks(analysis: Labelling, call: Call) -> Any:
    """Labels go along, but blocks, windows and lines must stay whole: units may vary along one dim that is kept."""
    if len(call.values) > 1:  # repeats that are computed
        return lock_all(analysis, call, reasons.COMPUTED_REPEATS)
    x = call.input
    for layer in x.layers:
        for dim in _block_dims(call, len(x.shape)):
            analysis.fix(layer, dim, reasons.BLOCKS)
    result: Value = moved(analysis, call)
    if call.name == "pixel_shuffle":
        for layer in result.layers:
            for dim in (len(x.shape) - 2, len(x.shape) - 1):
                analysis.fix(layer, dim, reasons.SPREAD)
    return result


def _block_dims(call: Call, rank: int) -> tuple[int, ...]:
    """The dims of the argument that are cut into blocks."""
    if call.name in ("unfold", "diagonal"):
        names = ("dimension",) if call.name == "unfold" else ("dim1", "dim2")
        return tuple(call[name] % rank for name in names)
    if call.name == "rot90":
        return tuple(dim % rank for dim in call["dims"])
    return () if call.name == "repeat_interleave" else (rank - 2, rank - 1)


def lock_all(analysis: Labelling, call: Call, told: Cause | str) -> Any:
    """Nothing that goes in may be pruned."""
    for value in call.values:
        for layer in value.layers:
            analysis.lock(layer, told)
    return torch.utils._pytree.tree_map_only(tuple, lambda s: Value(s), call.shape, is_leaf=binding.is_shape)


# -- shapes -----------------------------------------------------------------------------------------------------------


def rewrite_sizes(edit: Rewriting, call: Call) -> None:
    """Explicit sizes become those of the kept slices; -1 stays, symbolic sizes are scaled."""
    name = "shape" if "shape" in call.args else "sizes" if "sizes" in call.args else "size"
    given = list(edit.raw(call, name))
    old, new = list(call.shape), list(edit.kept_shape(edit.result(call)))
    if call.name == "unflatten":
        dim = call["dim"] % len(call.input.shape)
        old, new = old[dim : dim + len(given)], new[dim : dim + len(given)]
    edit.set(call, name, [edit.scaled(s, a, b) for s, a, b in zip(given, old, new, strict=True)])


operator("view", "reshape", "_unsafe_view", "unflatten", kind=Kind.MOVE, rewrite=rewrite_sizes)(moved)


@operator("view_as", "reshape_as", kind=Kind.ASSEMBLY)
def view_as(analysis: Labelling, call: Call) -> Value:
    """Takes its shape from a second tensor, so both are pruned alike."""
    layers = [with_labels(layer, reshape_labels(layer.labels, call.shape)) for layer in call["self"].layers]
    result = analysis.value(call.shape, layers)
    letters = tuple(f"d{d}" for d in range(len(call.shape)))
    unify(analysis, [Operand(result, letters), Operand(call["other"], letters)])
    return result


@operator("expand_as", kind=Kind.ASSEMBLY)
def expand_as(analysis: Labelling, call: Call) -> Value:
    """Broadcast to a second tensor: where it has its own units, so does the result."""
    x, other, shape = call["self"], call["other"], call.shape
    letters = tuple(f"d{d}" for d in range(len(shape)))
    own = Operand(x, letters[len(shape) - len(x.shape) :])
    unify(analysis, [own, Operand(other, letters)])
    layers = [with_labels(layer, layer.labels.expand(shape)) for layer in x.layers]
    for layer in other.layers:
        if not any(own.full(letters[dim]) for dim in layer.dims):
            layers.append(Layer(layer.labels, False))
    return analysis.value(shape, layers)


# -- parts ------------------------------------------------------------------------------------------------------------


def _positions(edit: Rewriting, call: Call, dim: int, original: np.ndarray) -> np.ndarray:
    """Where the kept ones among `original` indices along `dim` now stand in the kept input."""
    kept = edit.kept(call.input, dim)
    return np.searchsorted(kept, original[np.isin(original, kept)])


def _rewrite_slice(edit: Rewriting, call: Call) -> None:
    dim = call["dim"] % len(call.input.shape)
    size = call.input.shape[dim]
    original = np.arange(size)[slice(call["start"], call["end"], call["step"])]
    if len(original) == size or edit.kept_size(call.input, dim) == size:
        return  # the whole dim stays the whole dim, also where its size is symbolic
    positions = _positions(edit, call, dim, original)
    if len(positions) and np.array_equal(positions, np.arange(positions[0], positions[-1] + 1)):
        edit.set(call, "start", int(positions[0]))
        edit.set(call, "end", int(positions[-1]) + 1)
        edit.set(call, "step", 1)
    else:
        edit.select(call, dim, positions)


def _rewrite_narrow(edit: Rewriting, call: Call) -> None:
    dim = call["dim"] % len(call.input.shape)
    if edit.kept_size(call.input, dim) == call.input.shape[dim]:
        return
    original = np.arange(call["start"], call["start"] + call["length"])
    positions = _positions(edit, call, dim, original)
    edit.select(call, dim, positions)


def rewrite_single(edit: Rewriting, call: Call) -> None:
    """The index where its unit now stands; of a dim that stays whole it may be symbolic, or count from the end."""
    dim = call["dim"] % len(call.input.shape)
    size = call.input.shape[dim]
    if edit.kept_size(call.input, dim) < size:
        edit.set(call, "index", int(np.searchsorted(edit.kept(call.input, dim), call["index"] % size)))


def whole_where_free(analysis: Labelling, call: Call, *dims: int) -> None:
    """No unit may go along dims of the first tensor whose size is free: positions there are others at each size."""
    rank = len(call.input.shape)
    for dim in {d % rank for d in dims}.intersection(binding.free_sizes(call.node.all_input_nodes[0])):
        for layer in call.input.layers:
            analysis.fix(layer, dim, reasons.FREE_SIZE)


def whole_where_symbolic(analysis: Labelling, call: Call) -> None:
    """No unit may go along the call's dim where its index or a bound is symbolic, or counts from a free end."""
    dim = call["dim"] % len(call.input.shape)
    if any(not isinstance(node.meta["val"], Tensor) for node in call.node.all_input_nodes):
        for layer in call.input.layers:
            analysis.fix(layer, dim, reasons.FREE_LENGTH)
    if call.get("index", -1) < 0:
        whole_where_free(analysis, call, dim)


def _part(analysis: Labelling, call: Call) -> Any:
    """Labels go along; where the part is as long as a free size, any index may be asked for."""
    if call.shape != call.input.shape or any(isinstance(bound, fx.Node) for bound in call.node.args[2:]):
        whole_where_symbolic(analysis, call)
    return moved(analysis, call)


operator("slice", kind=Kind.MOVE, rewrite=_rewrite_slice)(_part)
operator("narrow", kind=Kind.MOVE, rewrite=_rewrite_narrow)(_part)
operator("select", kind=Kind.MOVE, rewrite=rewrite_single)(_part)
operator("unbind", kind=Kind.MOVE)(moved)


def _rewrite_split(edit: Rewriting, call: Call) -> None:
    """Always explicit sizes: a chunk count gives other sizes on a narrower dim."""
    dim = SPLIT_DIMS.get(call.name, call.get("dim", 0)) % len(call.input.shape)
    if edit.kept_size(call.input, dim) == call.input.shape[dim]:
        return
    sizes = [edit.kept_size(part, dim) for part in edit.result(call)]
    edit.replace(call, aten.split_with_sizes.default, (edit.source(call), sizes, dim))


@operator(*SPLITS, kind=Kind.MOVE, rewrite=_rewrite_split)
def split(analysis: Labelling, call: Call) -> Any:
    """Labels go along."""
    whole_where_free(analysis, call, SPLIT_DIMS.get(call.name, call.get("dim", 0)))
    return moved(analysis, call)


def _rewrite_roll(edit: Rewriting, call: Call) -> None:
    """A roll by s moves the last s indices to the front: of the kept ones, as many as were among them."""
    shifts, dims = list(call["shifts"]), call["dims"]
    for k, dim in enumerate(dims):
        size = call.input.shape[dim]
        wrapped = np.arange(size - shifts[k] % size, size)
        shifts[k] = int(np.isin(wrapped, edit.kept(call.input, dim)).sum())
    if dims and any(edit.kept_size(call.input, d) != call.input.shape[d] for d in dims):
        edit.set(call, "shifts", shifts)


operator("roll", kind=Kind.MOVE, rewrite=_rewrite_roll)(moved)


# -- joins ------------------------------------------------------------------------------------------------------------


def _rewrite_without_empty(edit: Rewriting, call: Call) -> None:
    """An empty part adds nothing, but its other sizes would have to fit, and pooling before it takes no empty input."""
    nodes, parts = edit.raw(call, "tensors"), call["tensors"]
    full = [node for node, part in zip(nodes, parts, strict=True) if 0 not in edit.kept_shape(part)]
    if full and len(full) < len(parts):
        edit.set(call, "tensors", full)


@operator("cat", "concat", "concatenate", kind=Kind.JOIN, rewrite=_rewrite_without_empty)
def concatenate(analysis: Labelling, call: Call) -> Value:
    """Along the joined dim labels stand side by side; along every other dim the parts are united."""
    parts = [part for part in call["tensors"] if len(part.shape) == len(call.shape)]
    return _join(analysis, call, parts, call["dim"] % len(call.shape))


@operator("stack", kind=Kind.JOIN)
def stack(analysis: Labelling, call: Call) -> Value:
    """As a concatenation along a new dim."""
    dim = call["dim"] % len(call.shape)
    parts = []
    for part in call["tensors"]:
        shape = (*part.shape[:dim], 1, *part.shape[dim:])
        layers = tuple(Layer(layer.labels.unsqueeze(dim), layer.zero) for layer in part.layers)
        parts.append(Value(shape, layers))
    return _join(analysis, call, parts, dim)


def _join(analysis: Labelling, call: Call, parts: list[Value], dim: int) -> Value:
    rank = len(call.shape)
    parts = [part for part in parts if 0 not in part.shape]
    operands = [Operand(p, tuple(f"{i}" if d == dim else f"d{d}" for d in range(rank))) for i, p in enumerate(parts)]
    unify(analysis, operands)
    return analysis.value(call.shape, [*_side_by_side(parts, dim), *_across(parts, dim, call.shape)])


def _side_by_side(parts: list[Value], dim: int) -> Iterator[Layer]:
    """The layers of the parts along the joined dim, one after the other; of size 1 one varies only with the others."""
    along = [part.on(dim) for part in parts]
    for k in range(max(map(len, along), default=0)):
        # A part with fewer layers is fixed there: label 0.
        columns = _columns([_nth(layers, k, part.shape) for layers, part in zip(along, parts, strict=True)])
        labels = torch.cat([column.labels for column in columns], dim)
        yield pack(labels, all(column.zero for column in columns))


def _across(parts: list[Value], dim: int, shape: tuple[int, ...]) -> Iterator[Layer]:
    """The layers along other dims alone, which all parts have: those of the first that has any."""
    found = ([layer for layer in part.layers if dim not in layer.dims] for part in parts)
    for layer in next(filter(None, found), []):
        column = layer.labels.narrow(dim, 0, 1).expand(shape)
        yield Layer(column, all(_zero_over(part, layer.dims) for part in parts))


def _nth(layers: list[Layer], k: int, shape: tuple[int, ...]) -> Layer:
    if k < len(layers):
        return layers[k]
    return Layer(torch.full((1,) * len(shape), FIXED).expand(shape), zero=True)


def _columns(layers: list[Layer]) -> list[Layer]:
    """One layer for each part; beside one that varies along several dims a fixed one is pending over the same dims."""
    if max(len(layer.dims) for layer in layers) < 2:
        return layers
    dims = tuple(sorted({d for layer in layers for d in layer.dims}))
    return [layer if layer.dims else pending_over(dims, tuple(layer.labels.shape)) for layer in layers]


def _zero_over(part: Value, dims: tuple[int, ...]) -> bool:
    return any(layer.zero for layer in part.layers if layer.dims == dims)


# -- lookups ----------------------------------------------------------------------------------------------------------


def rewrite_padding_index(edit: Rewriting, call: Call) -> None:
    """The row that no gradient goes to is another one where rows before it went, and none where itself went."""
    padding = call.get("padding_idx")
    n_rows = call["weight"].shape[0]
    kept = edit.kept(call["weight"], 0)
    if padding is None or padding < 0 or len(kept) == n_rows:
        return
    found = np.flatnonzero(kept == padding)
    edit.set(call, "padding_idx", int(found[0]) if len(found) else -1)


@operator("embedding", kind=Kind.LOOKUP, rewrite=rewrite_padding_index)
def embedding(analysis: Labelling, call: Call) -> Value:
    """Rows are looked up and stay, unless it is said which; columns are channels."""
    weight = call["weight"]
    for layer in weight.layers:
        analysis.look_up(layer, 0, reasons.LOOKED_UP)
    layers = []
    for layer in weight.on(1):
        if layer.dims == (1,):
            layers.append(Layer(layer.labels[0].expand(call.shape), layer.zero))
    return analysis.value(call.shape, layers)
