"""Complex numbers and Fourier transforms: a channel's positions are mixed, channels are not."""

from __future__ import annotations

from typing import Any

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.labels import Value, remainders, with_labels
from edgeprune.graph.ops.pointwise import pointwise
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling

operator("complex", "polar", kind=Kind.POINTWISE)(pointwise)


@operator("real", "imag", "_conj", "conj", "resolve_conj", "resolve_neg", kind=Kind.COPY)
def part(analysis: Labelling, call: Call) -> Value:
    """The same units: a part of each number, or its conjugate."""
    return Value(call.shape, call.input.layers)


@operator("view_as_complex", kind=Kind.PAIR)
def as_complex(analysis: Labelling, call: Call) -> Value:
    """`(..., 2)` of real numbers -> `(...)`: both parts of a number stay together."""
    x = call.input
    last = len(x.shape) - 1
    for layer in x.layers:
        analysis.fix(layer, last, reasons.PARTS)
    return analysis.value(call.shape, remainders(x, {d: d for d in range(last)}, call.shape))


@operator("view_as_real", kind=Kind.PAIR)
def as_real(analysis: Labelling, call: Call) -> Value:
    """`(...)` -> `(..., 2)` of real numbers."""
    layers = [with_labels(layer, layer.labels.unsqueeze(-1).expand(call.shape)) for layer in call.input.layers]
    return analysis.value(call.shape, layers)


@operator("_fft_r2c", "_fft_c2r", "_fft_c2c", kind=Kind.TRANSFORM)
def fourier(analysis: Labelling, call: Call) -> Any:
    """Transformed dims stay whole; all others pass, and zeros stay zeros."""
    x, rank = call.input, len(call.shape)
    mixed = {d % rank for d in call["dim"]}
    for layer in x.layers:
        for dim in mixed:
            analysis.fix(layer, dim, reasons.ALL_POSITIONS)
    return analysis.value(call.shape, remainders(x, {d: d for d in range(rank) if d not in mixed}, call.shape))
