"""Operators on each number by itself, or on pairs of numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axis_of
from edgeprune.formats.onnxin.known import product
from edgeprune.formats.onnxin.nodes import torch_dtype
from edgeprune.formats.onnxin.registry import rule

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Cos": torch.cos,
    "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish,
    "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b,
    "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b,
    "GreaterOrEqual": lambda a, b: a >= b, "LessOrEqual": lambda a, b: a <= b,
}  # fmt: skip
_LOGICAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
_HARD = 1 / 6  # the slope of PyTorch's hard sigmoid


def _is_scalar(call: Call, position: int) -> bool:
    """Whether a constant is one number that no dim of the result comes from."""
    constant = call.constant(position)
    if constant is None or constant.numel() != 1:
        return False
    other = call.tensor(1 - position) if call.constant(1 - position) is None else call.constant(1 - position)
    return other is not None and other.dim() >= constant.dim() and not call.folding


def operands(call: Call) -> tuple[Any, Any]:
    """Both sides; a constant of one number is a number, and one of several is a parameter."""
    left, right = (
        call.scalar(position) if _is_scalar(call, position) else call.operand(position, role)
        for position, role in ((0, "weight"), (1, "bias" if call.node.op in ("Add", "Sub") else "weight"))
    )
    return left, right


@rule(*_UNARY)
def unary(call: Call) -> Tensor:
    """A function of each number."""
    return _UNARY[call.node.op](call.tensor(0))


@rule(*_BINARY)
def binary(call: Call) -> Tensor:
    """A function of each pair of numbers, of which shapes of one are repeated."""
    left, right = operands(call)
    result: Tensor = _BINARY[call.node.op](left, right)
    return result


@rule("Pow")
def power(call: Call) -> Tensor:
    """A power, of the base's type; that of a whole number by a fraction is cut to a whole one."""
    left, right = operands(call)
    base, exponent = (
        (side if isinstance(side, Tensor) else call.known(position)).dtype
        for position, side in enumerate((left, right))
    )
    if exponent.is_floating_point and not base.is_floating_point:
        left, right = (side.double() if isinstance(side, Tensor) else side for side in (left, right))
    result: Tensor = left**right
    return result.to(base)


@rule("Div")
def divide(call: Call) -> Tensor:
    """A quotient; that of whole numbers without its fraction."""
    left, right = operands(call)
    if (left if isinstance(left, Tensor) else right).is_floating_point():
        quotient: Tensor = left / right
        return quotient
    return torch.div(*(x if isinstance(x, Tensor) else torch.tensor(x) for x in (left, right)), rounding_mode="trunc")


@rule("Mod")
def modulo(call: Call) -> Tensor:
    """The rest of a division, with the sign of the divisor, or with `fmod` of what is divided."""
    left, right = call.tensor(0), call.tensor(1)
    return torch.fmod(left, right) if call.attribute("fmod", 0) else torch.remainder(left, right)


@rule(*_LOGICAL)
def logical(call: Call) -> Tensor:
    """A function of pairs of truth values or bits."""
    return _LOGICAL[call.node.op](call.tensor(0), call.tensor(1))


@rule("Min", "Max", "Sum", "Mean")
def several(call: Call) -> Tensor:
    """The least, the largest, the sum or the mean of any number of tensors."""
    if call.node.op in ("Min", "Max") and len(call) == 2 and (_is_scalar(call, 0) or _is_scalar(call, 1)):
        x, bound = sorted(operands(call), key=lambda value: not isinstance(value, Tensor))
        return torch.clamp(x, max=bound) if call.node.op == "Min" else torch.clamp(x, min=bound)
    given = [call.operand(position) for position in range(len(call))]
    pairwise = {"Min": torch.minimum, "Max": torch.maximum}.get(call.node.op, torch.add)
    total = functools.reduce(pairwise, given)
    return total / len(given) if call.node.op == "Mean" else total


@rule("Where")
def where(call: Call) -> Tensor:
    """One of two numbers by a truth value."""
    return torch.where(call.tensor(0), call.operand(1), call.operand(2))


@rule("Clip")
def clip(call: Call) -> Tensor:
    """Numbers within bounds, either of which may be missing."""
    x = call.tensor(0)
    bounds = [_bound(call, name, position) for name, position in (("min", 1), ("max", 2))]
    if bounds == [None, None]:
        return x
    return torch.clamp(x, *bounds)


def _bound(call: Call, name: str, position: int) -> Any:
    if name in call.node.attributes:
        value = float(call.attribute(name))
        return value if abs(value) < torch.finfo(torch.float32).max else None
    if not call.has(position):
        return None
    bound: Any = call.scalar(position) if call.is_known(position) else call.tensor(position)
    return bound if not isinstance(bound, float) or math.isfinite(bound) else None


@rule("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """Relu with a slope below zero."""
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@rule("PRelu")
def prelu(call: Call) -> Tensor:
    """Relu with a learnt slope below zero."""
    x, slope = call.tensor(0), call.weight(1)
    of_channels = x.dim() > 1 and slope.dim() == x.dim() - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if slope.numel() == 1 or of_channels or (x.dim() == 2 and slope.dim() == 1 and slope.shape[0] == x.shape[1]):
        return F.prelu(x, call.weight(1, "weight", "flat", lambda tensor: tensor.reshape(-1)))
    return torch.where(x < 0, x * slope, x)


@rule("Elu")
def elu(call: Call) -> Tensor:
    """Exponential below zero."""
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


@rule("Celu")
def celu(call: Call) -> Tensor:
    """Exponential below zero, with a smooth slope."""
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


@rule("Selu")
def selu(call: Call) -> Tensor:
    """Scaled exponential below zero."""
    x = call.tensor(0)
    alpha, gamma = call.attribute("alpha", 1.6732632), call.attribute("gamma", 1.0507010)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@rule("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    """Zero up to a threshold."""
    return F.threshold(call.tensor(0), call.attribute("alpha", 1.0), 0.0)


@rule("Shrink")
def shrink(call: Call) -> Tensor:
    """Towards zero by a bias, and zero where it is near."""
    x, bias, bound = call.tensor(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


@rule("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """A line between zero and one."""
    slope, offset = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if math.isclose(slope, _HARD, rel_tol=1e-6) and offset == 0.5:
        return F.hardsigmoid(call.tensor(0))
    return torch.clamp(call.tensor(0) * slope + offset, 0.0, 1.0)


@rule("Gelu")
def gelu(call: Call) -> Tensor:
    """The Gaussian's unit."""
    return F.gelu(call.tensor(0), approximate=call.text("approximate", "none"))


@rule("Swish")
def swish(call: Call) -> Tensor:
    """A number times its sigmoid."""
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@rule("IsInf")
def is_inf(call: Call) -> Tensor:
    """Whether a number is infinite."""
    x = call.tensor(0)
    up, down = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    return x == (math.inf if up else -math.inf)


@rule("BitShift")
def bit_shift(call: Call) -> Tensor:
    """Bits moved to the left or to the right."""
    left, right = call.tensor(0), call.tensor(1)
    return left << right if call.text("direction", "") == "LEFT" else left >> right


@rule("Softmax", "LogSoftmax")
def softmax(call: Call) -> Tensor:
    """Softmax along an axis; until opset 12 over all dims from it on."""
    function = torch.softmax if call.node.op == "Softmax" else torch.log_softmax
    x = call.tensor(0)
    axis = axis_of(call.attribute("axis", -1 if call.opset >= 13 else 1), x.dim())
    if call.opset >= 13 or product(x.shape[axis + 1 :]) == 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


@rule("Hardmax")
def hardmax(call: Call) -> Tensor:
    """One where the largest is, zero elsewhere."""
    x = call.tensor(0)
    axis = axis_of(call.attribute("axis", -1 if call.opset >= 13 else 1), x.dim())
    call.refuse_if(call.opset < 13 and axis != x.dim() - 1, "the last axis before opset 13", axis)
    places = torch.arange(x.shape[axis]).reshape([-1 if dim == axis else 1 for dim in range(x.dim())])
    return (x.argmax(axis, keepdim=True) == places).to(x.dtype)


@rule("Cast")
def cast(call: Call) -> Tensor:
    """Another type; a truth value of a number is whether it is not zero."""
    return call.tensor(0).to(torch_dtype(call.attribute("to"), "attribute 'to'"))


@rule("CastLike")
def cast_like(call: Call) -> Tensor:
    """The type of another tensor."""
    return call.tensor(0).to(call.tensor(1).dtype)


@rule("Identity")
def identity(call: Call) -> Tensor:
    """The same."""
    return call.tensor(0)


@rule("Dropout")
def dropout(call: Call) -> tuple[Tensor, ...]:
    """Nothing in eval mode; what drops when it is trained."""
    x = call.tensor(0)
    training = call.has(2) and bool(call.scalar(2))
    call.refuse_if(training, "a dropout in eval mode", "training_mode=True")
    ratio = call.attribute("ratio", None)
    ratio = float(ratio if ratio is not None else call.scalar(1) if call.has(1) else 0.5)
    kept = F.dropout(x, ratio, False) if 0 < ratio < 1 and not call.folding else x
    return kept, torch.ones_like(x, dtype=torch.bool)
