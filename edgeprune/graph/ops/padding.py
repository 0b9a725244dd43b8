"""Padding: what is added along a labelled dim is a constant, or repeats elements that are there."""

from __future__ import annotations

import numpy as np
import torch

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.labels import FIXED, Layer, Value, core, pending_over, remainders, spread, with_labels
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting


def _rewrite_pad(edit: Rewriting, call: Call) -> None:
    """What is cut off of a pruned dim is as many as are kept of it there."""
    sizes, rank = list(edit.raw(call, "pad")), len(call.shape)
    for dim, (before, after) in _amounts(call).items():
        kept, size = edit.kept(call.input, dim), call.input.shape[dim]
        if len(kept) == size:
            continue
        if before < 0:
            sizes[2 * (rank - 1 - dim)] = -int((kept < -before).sum())
        if after < 0:
            sizes[2 * (rank - 1 - dim) + 1] = -int((kept >= size + after).sum())
    edit.set(call, "pad", sizes)


@operator("constant_pad_nd", "pad", kind=Kind.MOVE, rewrite=_rewrite_pad)
def pad(analysis: Labelling, call: Call) -> Value:
    """Along dims without labels what is added has the labels of what it stands beside."""
    mode = call.get("mode", "constant")
    if call.input.raw:
        return _around_input(analysis, call, mode)
    return _constant(analysis, call) if mode == "constant" else _repeated(analysis, call)


def _around_input(analysis: Labelling, call: Call, mode: str) -> Value:
    """Around an input each added element goes with the one that it repeats, a constant with the nearest one.

    Nothing reads zero in an input, so that a constant may go with a feature: its readers' weights go too.
    """
    x = call.input
    layers = []
    for layer in x.layers:
        labels = layer.labels
        for dim, (before, after) in _amounts(call).items():
            if dim in layer.dims:
                labels = labels.index_select(dim, torch.from_numpy(_origins(x.shape[dim], before, after, mode)))
        varying = tuple(slice(None) if d in layer.dims else 0 for d in range(len(x.shape)))
        layers.append(with_labels(layer, spread(labels[varying], layer.dims, call.shape)))
    return analysis.value(call.shape, layers)


def _amounts(call: Call) -> dict[int, tuple[int, int]]:
    """Dim -> how many elements are added before and after; below 0 as many are cut off."""
    sizes, rank = call["pad"], len(call.shape)
    return {rank - 1 - k: (sizes[2 * k], sizes[2 * k + 1]) for k in range(len(sizes) // 2)}


def _origins(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """For each index along a padded dim the one that it repeats, e.g. 1 0 1 2 1 for three reflected by one."""
    index = np.arange(-before, size + after)
    if mode == "circular":
        return index % size
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return np.minimum(index % period, period - index % period)
    return index.clip(0, size - 1)


def _constant(analysis: Labelling, call: Call) -> Value:
    """Along labelled dims what is added is fixed; elsewhere the labels cover it."""
    x, shape = call.input, call.shape
    zero = not call.get("value")
    padded = {d for d, amounts in _amounts(call).items() if any(amounts)}
    layers = []
    for layer in x.layers:
        if padded.isdisjoint(layer.dims):
            layers.append(Layer(spread(core(layer), layer.dims, shape), layer.zero and zero))
        else:
            labels = _beside_fixed(call, layer)
            layers.append(with_labels(Layer(labels, layer.zero and zero), labels))
    return analysis.value(shape, [layer for layer in layers if layer.dims])


def _beside_fixed(call: Call, layer: Layer) -> torch.Tensor:
    """The labels of a layer with what is added to the dims that it varies along."""
    shape = call.shape
    whole = tuple(shape[d] if d not in layer.dims else n for d, n in enumerate(call.input.shape))
    sizes = [n if len(shape) - 1 - k // 2 in layer.dims else 0 for k, n in enumerate(call["pad"])]
    labels = torch.nn.functional.pad(spread(core(layer), layer.dims, whole), sizes, value=FIXED)
    if len(layer.dims) == 1:
        return labels
    # Whether the units vary along this dim is not settled yet.
    added = torch.nn.functional.pad(torch.zeros(1).expand(whole), sizes, value=1.0) > 0
    labels = torch.where(added, pending_over(layer.dims, shape).labels, labels)
    varying = tuple(slice(None) if d in layer.dims else 0 for d in range(len(shape)))
    return spread(labels[varying], layer.dims, shape)


def _repeated(analysis: Labelling, call: Call) -> Value:
    """Units along a dim of which positions are repeated stay; other dims pass."""
    x = call.input
    padded = {d for d, amounts in _amounts(call).items() if any(amounts)}
    for layer in x.layers:
        for dim in padded.intersection(layer.dims):
            analysis.fix(layer, dim, reasons.REPEATED)
    return analysis.value(call.shape, remainders(x, {d: d for d in range(len(x.shape)) if d not in padded}, call.shape))
