"""Operators that compute each number of its own: functions of one value wait until something reads the result."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from edgeprune.export.c.expressions import BINARY, UNARY, Expression, clip, unary, with_scalar
from edgeprune.export.c.graph import Call, CType, Held, View
from edgeprune.export.c.reading import attributes
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.walks import aligned, walk_of


@rule(*UNARY)
def _unary(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_float(node)
    low.expressions[node.output[0]] = low.expression(node.input[0]).then(unary(node.op_type, attributes(node)))


@rule("Clip")
def _clip(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_float(node)
    told, bounds = options(node, min=-math.inf, max=math.inf), []
    for place, name in enumerate(("min", "max"), 1):
        given = low.constant(node, place)
        bounds.append(told[name] if given is None else float(given))
    least, most = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    lower, upper = (-math.inf if bounds[0] <= least else bounds[0]), (math.inf if bounds[1] >= most else bounds[1])
    low.expressions[node.output[0]] = low.expression(node.input[0]).then(clip(lower, upper))


@rule(*BINARY)
def _binary(low: Lowering, node: onnx.NodeProto) -> None:
    low.check_float(node)
    if len(node.input) != 2:
        raise refusal(node, f"of {len(node.input)} values")
    found = _as_expression(low, node)
    if found is not None:
        low.expressions[node.output[0]] = found
        return
    operands = [(low.operand(name), low.net.shapes[name]) for name in node.input]
    with_two(low, node, BINARY[node.op_type].text, operands)


def with_two(
    low: Lowering, node: onnx.NodeProto, text: str, operands: Sequence[tuple[View | Held, tuple[int, ...]]]
) -> None:
    """A function `text` of `{u}` and `{v}`, two arrays of these shapes, each repeated to that of the result."""
    shape = low.net.shapes[node.output[0]]
    strides = [aligned(own, shape) for _, own in operands]
    (left, _), (right, _) = operands
    out = low.result(node)
    over = [one for one in (left, right) if isinstance(one, View) and one.n_elements == out.n_elements]
    walk = low.sizes("walk", *walk_of(node, shape, *strides))
    low.made.add(out, Call(f"binary:{text}", (left, right, out, walk)), over=over)


def _as_expression(low: Lowering, node: onnx.NodeProto) -> Expression | None:
    """A function of one value: with a constant number, or of two functions of that value."""
    shapes = [low.net.shapes[name] for name in node.input]
    for place, name in enumerate(node.input):
        other = node.input[1 - place]
        if name in low.net.known and low.known(name).size == 1:
            number = float(low.known(name).item())
            return low.expression(other).then(with_scalar(node.op_type, number, is_left=place == 0))
    if any(name in low.net.known for name in node.input) or math.prod(shapes[0]) != math.prod(shapes[1]):
        return None
    left, right = (low.expression(name) for name in node.input)
    return left.joined(right, BINARY[node.op_type]) if left.base == right.base else None


_CASTS: dict[CType, str] = {"uint8_t": "cast_u8_f32", "int32_t": "cast_i32_f32"}


@rule("Cast")
def _cast(low: Lowering, node: onnx.NodeProto) -> None:
    before, after = (low.type_of(name) for name in (node.input[0], node.output[0]))
    if before == after:
        low.show(node, low.view(node.input[0]))
    elif after == "float" and before in _CASTS:
        x, out = low.view(node.input[0]), low.result(node)
        low.made.add(out, Call(_CASTS[before], (x, out, str(out.n_elements))))
    else:
        raise refusal(node, f"from {before} to {after}")
