"""Operators that work on each element by itself; operands are united element by element."""

from __future__ import annotations

import math

from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value, pack
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting


def align(value: Value, rank: int) -> Operand:
    """Letters of a value that is broadcast against a result of `rank` dims: the result's dims, right-aligned."""
    offset = rank - len(value.shape)
    return Operand(value, tuple(f"d{d + offset}" for d in range(len(value.shape))))


def combine(analysis: Labelling, call: Call, operands: list[Operand], shape: tuple[int, ...]) -> Value:
    """The result of an element-wise function of aligned operands."""
    operands = unify(analysis, operands)
    layers = []
    seen: set[tuple[str, ...]] = set()
    for operand in operands:
        known = frozenset(seen)  # the same operand may have several layers over the same dims
        for layer in operand.value.layers:
            over = operand.over(layer)
            if over in known:
                continue
            seen.add(over)
            pattern = tuple(other.reads_zero(over) for other in operands)
            padded = layer.labels.reshape((1,) * (len(shape) - layer.labels.dim()) + tuple(layer.labels.shape))
            layers.append(pack(padded.expand(shape), analysis.reads_zero(call, pattern)))
    return analysis.value(shape, layers)


def _rewrite_dropout(edit: Rewriting, call: Call) -> None:
    """Fewer units need less dropout: p shrinks with the square root of the kept share.

    Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, equation 2.
    """
    x = call.input  # "input", or "self" for the in-place form
    kept = math.prod(edit.kept_shape(x)) / math.prod(x.shape)
    if kept < 1 and not call.get("train"):  # one that is on in eval mode, too, is a part of what the network computes
        edit.set(call, "p", call["p"] * math.sqrt(kept))


@operator(
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    kind=Kind.POINTWISE, rewrite=_rewrite_dropout,
)  # fmt: skip
@operator(
    "pointwise", "hardswish", "relu6", "selu", "log_sigmoid", "rsub", "true_divide", "divide", "multiply", "subtract",
    "masked_fill", "where", "clamp", "float_power", "square", "expm1", "softsign", "rrelu",
    "rand_like", "randn_like", "normal", "uniform", "exponential", "cauchy", "log_normal",
    kind=Kind.POINTWISE,
)  # fmt: skip
def pointwise(analysis: Labelling, call: Call) -> Value:
    """Labels pass; of several operands they are united."""
    shape = call.shape
    if not isinstance(shape, tuple):
        return Value(())
    return combine(analysis, call, [align(value, len(shape)) for value in call.values], shape)


operator("_assert_tensor_metadata", kind=Kind.CHECK)(pointwise)


@operator("type_as", kind=Kind.CONVERSION)
def like_type(analysis: Labelling, call: Call) -> Value:
    """Takes no more than its type from the second tensor."""
    return Value(call.shape, call["self"].layers)


@operator("prelu", kind=Kind.CHANNELWISE)
def prelu(analysis: Labelling, call: Call) -> Value:
    """The slope has one entry for each channel (dim 1), or one for all."""
    x, weight = call["self"], call["weight"]
    operands = [align(x, len(x.shape)), Operand(weight, ("d1",) if len(x.shape) > 1 else ("d0",))]
    unify(analysis, operands)
    return Value(x.shape, x.layers)


@operator("glu", kind=Kind.GATE)
def glu(analysis: Labelling, call: Call) -> Value:
    """The first half of a dim is gated by the second: unite the halves."""
    x, dim = call["self"], call["dim"] % len(call["self"].shape)
    half = x.shape[dim] // 2
    halves = []
    for start in (0, half):
        parts = [Layer(layer.labels.narrow(dim, start, half), layer.zero) for layer in x.layers]
        halves.append(align(Value(call.shape, tuple(pack(part.labels, part.zero) for part in parts)), len(call.shape)))
    unify(analysis, halves)
    return analysis.value(call.shape, halves[0].value.layers)
