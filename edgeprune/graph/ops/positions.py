"""Sampling at computed places, and broadcasts that a cut makes narrower."""

from __future__ import annotations

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value, remainders, spread
from edgeprune.graph.ops.movement import lock_all, moved, rewrite_sizes
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling


@operator("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", kind=Kind.LOOKUP)
def grid_sample(analysis: Labelling, call: Call) -> Value:
    """`(n, channels, ...)` read at the places of a grid: channels pass, zeros stay zeros."""
    x, grid = call["input"], call["grid"]
    for layer in grid.layers:
        analysis.lock(layer, reasons.ALL_POSITIONS)
    for layer in x.layers:
        for dim in range(2, len(x.shape)):
            analysis.fix(layer, dim, reasons.ALL_POSITIONS)
    return analysis.value(call.shape, remainders(x, {0: 0, 1: 1}, call.shape))


@operator("affine_grid_generator", kind=Kind.LOOKUP)
def affine_grid(analysis: Labelling, call: Call) -> Value:
    """A grid of places from a matrix, all of which is needed."""
    result: Value = lock_all(analysis, call, reasons.ALL_POSITIONS)
    return result


@operator("max_unpool2d", "max_unpool3d", kind=Kind.LOOKUP)
def max_unpool(analysis: Labelling, call: Call) -> Value:
    """Each value goes where its index tells, within its own channel; everywhere else are zeros."""
    x, indices = call["self"], call["indices"]
    n_lead = len(x.shape) - int(call.name[-2])
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    operands = [Operand(x, letters), Operand(indices, letters)]
    for operand in operands:
        for letter in letters[n_lead:]:
            operand.fix(analysis, letter, reasons.ALL_POSITIONS)
    unify(analysis, operands)
    return analysis.value(call.shape, remainders(x, {d: d for d in range(n_lead)}, call.shape))


@operator("expand", "broadcast_to", kind=Kind.MOVE, rewrite=rewrite_sizes)
def expand(analysis: Labelling, call: Call) -> Value:
    """Along a dim that is repeated the elements are all alike: it is as wide as its partners need, with own units.

    Heads that are repeated have units already, which decide.
    """
    x = call["self"]
    result: Value = moved(analysis, call)
    if x.raw or result.layers:
        return result
    layers = []
    n_new = len(call.shape) - len(x.shape)
    for dim, size in enumerate(call.node.meta["val"].shape):
        repeated = dim < n_new or x.shape[dim - n_new] == 1
        if repeated and isinstance(size, int) and size > 1:
            labels = analysis.source("broadcast", call.node.name, dim, size)
            layers.append(Layer(spread(labels, (dim,), call.shape), zero=False))
    return analysis.value(call.shape, layers)
