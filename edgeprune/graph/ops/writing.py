"""Operators that make constants, and the functional forms of writes into views."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import unify
from edgeprune.graph.labels import Layer, Value, pack
from edgeprune.graph.ops.movement import rewrite_single, whole_where_symbolic
from edgeprune.graph.ops.pointwise import align
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting

aten = torch.ops.aten


@operator("new_zeros", "new_ones", "new_full", "new_empty", kind=Kind.CONSTANT)
def constant(analysis: Labelling, call: Call) -> Value:
    """Takes no more than its type from the tensor: a constant, sliced where it meets labelled values."""
    sizes = call["size"]
    number = 1.0 if call.name == "new_ones" else call.get("fill_value", 0.0)
    return Value(call.shape, const=torch.full(sizes, number, dtype=call.node.meta["val"].dtype))


@operator("zeros_like", "ones_like", "full_like", "empty_like", "fill", "zero", kind=Kind.CONSTANT)
def like(analysis: Labelling, call: Call) -> Value:
    """Follows the shape of its tensor."""
    zero = call.name in ("zeros_like", "zero") or call.get("fill_value", call.get("value", 1)) == 0
    return Value(call.shape, tuple(Layer(layer.labels, zero) for layer in call.input.layers))


@operator("copy", kind=Kind.OVERWRITE)
def copy(analysis: Labelling, call: Call) -> Value:
    """The second tensor in the shape of the first."""
    into, source = (align(call[name], len(call.shape)) for name in ("self", "src"))
    unify(analysis, [into, source])
    layers = []
    for layer in call["self"].layers:
        twins = [twin for twin in call["src"].layers if source.over(twin) == into.over(layer)]
        layers.append(Layer(layer.labels, any(twin.zero for twin in twins)))
    for twin in call["src"].layers:
        if source.over(twin) not in [into.over(layer) for layer in call["self"].layers]:
            padded = twin.labels.reshape((1,) * (len(call.shape) - twin.labels.dim()) + tuple(twin.labels.shape))
            layers.append(pack(padded.expand(call.shape), twin.zero))
    return analysis.value(call.shape, layers)


def _rewrite_slice_scatter(edit: Rewriting, call: Call) -> None:
    dim = call["dim"] % len(call.shape)
    kept = edit.kept(call["self"], dim)
    if len(kept) == call.shape[dim]:
        return
    window = np.arange(call.shape[dim])[slice(call["start"], call["end"], call["step"])]
    positions = np.searchsorted(kept, window[np.isin(window, kept)])
    source = edit.raw(call, "src")
    edit.replace(call, aten.index_copy.default, (edit.source(call), dim, edit.indices(call, positions), source))


def _scatter(analysis: Labelling, call: Call, window: Any) -> Value:
    """`window(tensor)` is the part of the first tensor that the second one replaces: they are united."""
    target, source = call["self"], call["src"]
    whole_where_symbolic(analysis, call)
    part = Value(source.shape, tuple(pack(window(layer.labels), layer.zero) for layer in target.layers))
    for layer in part.layers:
        if not layer.dims:  # a single unit of the dim is written to
            analysis.lock(layer, reasons.SINGLE_WRITE)
    part = Value(part.shape, tuple(layer for layer in part.layers if layer.dims))
    unify(analysis, [align(part, len(source.shape)), align(source, len(source.shape))])
    layers = []
    for layer in target.layers:
        dims = pack(window(layer.labels), layer.zero).dims
        zero = layer.zero and any(twin.zero for twin in source.layers if twin.dims == dims)
        layers.append(Layer(layer.labels, zero))
    return analysis.value(call.shape, layers)


@operator("slice_scatter", kind=Kind.ASSEMBLY, rewrite=_rewrite_slice_scatter)
def slice_scatter(analysis: Labelling, call: Call) -> Value:
    """A copy of the first tensor with one slice replaced."""
    dim, start, end, step = call["dim"], call["start"], call["end"], call["step"]
    return _scatter(analysis, call, lambda labels: aten.slice.Tensor(labels, dim, start, end, step))


@operator("select_scatter", kind=Kind.ASSEMBLY, rewrite=rewrite_single)
def select_scatter(analysis: Labelling, call: Call) -> Value:
    """A copy of the first tensor with one index of a dim replaced."""
    return _scatter(analysis, call, lambda labels: labels.select(call["dim"], call["index"]))
