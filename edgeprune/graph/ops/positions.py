"""Sampling at computed places, and broadcasts that a cut makes narrower."""

from __future__ import annotations

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value, remainders, spread
from edgeprune.graph.ops.movement import lock_all, moved, rewrite_sizes
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting


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
    return _broadcast(analysis, call)


def _broadcast(analysis: Labelling, call: Call) -> Value:
    result: Value = moved(analysis, call)
    if result.layers:
        return result
    layers = []
    for dim in _repeated(call):
        size = call.node.meta["val"].shape[dim]
        if isinstance(size, int) and size > 1:
            labels = analysis.source("broadcast", call.node.name, dim, size)
            layers.append(Layer(spread(labels, (dim,), call.shape), zero=False))
    return analysis.value(call.shape, layers)


def _repeated(call: Call) -> list[int]:
    """The dims of the result that the argument lacks, or has with a single element."""
    n_new = len(call.shape) - len(call.input.shape)
    return [dim for dim in range(len(call.shape)) if dim < n_new or call.input.shape[dim - n_new] == 1]


def _rewrite_repeats(edit: Rewriting, call: Call) -> None:
    """A single element is repeated as often as its partners need; what is longer keeps its count."""
    name = "repeats" if "repeats" in call.args else "dims"
    given = list(edit.raw(call, name))
    new, offset = edit.kept_shape(edit.result(call)), len(call.shape) - len(given)
    for dim in _repeated(call):
        if dim >= offset:
            given[dim - offset] = edit.scaled(given[dim - offset], call.shape[dim], new[dim])
    edit.set(call, name, given)


@operator("repeat", "tile", kind=Kind.MOVE, rewrite=_rewrite_repeats)
def repeat(analysis: Labelling, call: Call) -> Value:
    """As an expansion where there is a single element; else labels go along."""
    return _broadcast(analysis, call)
