"""Comparisons and what goes by them: functions of one number, as there are no truth values in an arena."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from edgeprune.export.c.expressions import Binary, Expression
from edgeprune.export.c.graph import literal
from edgeprune.export.c.pointwise import with_two
from edgeprune.export.c.rules import Lowering, refusal, rule

_COMPARED = {
    "Greater": Binary("({u} > {v})", np.greater),
    "GreaterOrEqual": Binary("({u} >= {v})", np.greater_equal),
    "Less": Binary("({u} < {v})", np.less),
    "LessOrEqual": Binary("({u} <= {v})", np.less_equal),
    "Equal": Binary("({u} == {v})", np.equal),
}


@rule(*_COMPARED)
def _compare(low: Lowering, node: onnx.NodeProto) -> None:
    left, right = (_function(low, node, name) for name in node.input)
    joined = left.joined(right, _COMPARED[node.op_type])
    low.expressions[node.output[0]] = replace(joined, base=_base(node, left, right))


@rule("Where")
def _choose(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_float(node, 0)
    if node.input[0] in low.net.known:
        _cover(low, node)
        return
    parts = [_function(low, node, name) for name in node.input]
    condition, yes, no = parts
    text = f"({condition.text} ? {yes.text} : {no.text})"
    low.expressions[node.output[0]] = Expression(
        _base(node, *parts),
        text,
        lambda x: np.where(condition.function(x), yes.function(x), no.function(x)),
    )


def _cover(low: Lowering, node: onnx.NodeProto) -> None:
    """A value where a constant says so, and a number elsewhere."""
    condition, yes, no = node.input
    name, other = (yes, no) if no in low.net.known else (no, yes)
    if name in low.net.known or other not in low.net.known or low.known(other).size != 1:
        raise refusal(node, "of several values")
    kept = low.net.known[condition] if name == yes else ~low.net.known[condition]
    mask = low.made.hold(kept.astype(np.float32), "float")
    text = f"({{v}} != 0.0f ? {{u}} : {literal(float(low.known(other).item()))})"
    with_two(low, node, text, [(low.view(name), low.net.shapes[name]), (mask, kept.shape)])


def _function(low: Lowering, node: onnx.NodeProto, name: str) -> Expression:
    """A value, or a single number, which is a function of any value: that has no name."""
    if name not in low.net.known:
        return low.expression(name)
    number = low.known(name)
    if number.size != 1:
        raise refusal(node, "by more than one constant")
    held = float(number.item())
    return Expression("", literal(held), lambda x: np.full_like(x, held))


def _base(node: onnx.NodeProto, *parts: Expression) -> str:
    """The value that all are functions of."""
    found = {part.base for part in parts if part.base}
    if len(found) != 1:
        raise refusal(node, "of several values")
    return found.pop()
