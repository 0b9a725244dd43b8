"""MIL's operators on single elements."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.export.mil.registry import RULES, Call, rule

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "abs": torch.abs, "acos": torch.acos, "asin": torch.asin, "atan": torch.atan,
    "atanh": torch.atanh, "ceil": torch.ceil, "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf, "exp": torch.exp,
    "exp2": torch.exp2, "floor": torch.floor, "logical_not": torch.logical_not, "relu": torch.relu, "relu6": F.relu6,
    "round": torch.round, "sigmoid": torch.sigmoid, "sign": torch.sign, "silu": F.silu, "sin": torch.sin,
    "sinh": torch.sinh, "softplus": F.softplus, "softsign": F.softsign, "sqrt": torch.sqrt, "square": torch.square,
    "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum, "minimum": torch.minimum,
    "pow": torch.pow, "mod": torch.remainder, "floor_div": torch.floor_divide, "equal": torch.eq, "not_equal": torch.ne,
    "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
}  # fmt: skip


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call["x"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call["x"], call["y"])


RULES.update({name: _unary(function) for name, function in _UNARY.items()})
RULES.update({name: _binary(function) for name, function in _BINARY.items()})


@rule("real_div")
def _real_div(call: Call) -> Tensor:
    """Whole numbers are divided to whole ones, down."""
    x, y = call["x"], call["y"]
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.floor_divide(x, y)


@rule("cast")
def _cast(call: Call) -> Tensor:
    """The type is the output's, which every operator's result gets; floats lose what is behind their point."""
    x = call["x"]
    return torch.trunc(x) if x.is_floating_point() and "int" in call.text("dtype") else x


@rule("log")
def _log(call: Call) -> Tensor:
    return torch.log(call["x"] + call.number("epsilon"))


@rule("rsqrt")
def _rsqrt(call: Call) -> Tensor:
    return torch.rsqrt(call["x"] + call.number("epsilon"))


@rule("inverse")
def _inverse(call: Call) -> Tensor:
    return 1 / (call["x"] + call.number("epsilon"))


@rule("clip")
def _clip(call: Call) -> Tensor:
    return torch.clamp(call["x"], call.number("alpha", -math.inf), call.number("beta", math.inf))


@rule("threshold")
def _threshold(call: Call) -> Tensor:
    return torch.clamp(call["x"], min=call.number("alpha"))


@rule("leaky_relu")
def _leaky_relu(call: Call) -> Tensor:
    return F.leaky_relu(call["x"], call.number("alpha", 0.01))


@rule("elu")
def _elu(call: Call) -> Tensor:
    return F.elu(call["x"], call.number("alpha", 1.0))


@rule("prelu")
def _prelu(call: Call) -> Tensor:
    x = call["x"]
    alpha = call["alpha"].reshape(1, -1, *[1] * (x.dim() - 2))
    return torch.where(x >= 0, x, alpha * x)


@rule("gelu")
def _gelu(call: Call) -> Tensor:
    x, mode = call["x"], call.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@rule("sigmoid_hard")
def _sigmoid_hard(call: Call) -> Tensor:
    return torch.clamp(call.number("alpha", 0.2) * call["x"] + call.number("beta", 0.5), 0, 1)


@rule("linear_activation")
def _linear_activation(call: Call) -> Tensor:
    return call.number("alpha") * call["x"] + call.number("beta")


@rule("scaled_tanh")
def _scaled_tanh(call: Call) -> Tensor:
    return call.number("alpha", 1.0) * torch.tanh(call.number("beta", 1.0) * call["x"])


@rule("select")
def _select(call: Call) -> Tensor:
    return torch.where(call["cond"].bool(), call["a"], call["b"])


@rule("constexpr_affine_dequantize")
def _affine_dequantize(call: Call) -> Tensor:
    """Weights of 8 bits, a scale and a zero point for each place along an axis."""
    x, axis = call["quantized_data"].float(), call.integers("axis", [0])[0]
    shape = [-1 if dim == axis % x.dim() else 1 for dim in range(x.dim())]
    scale, zero = (
        part.float().reshape(shape) if part.numel() > 1 else part.float()
        for part in (call["scale"], call["zero_point"])
    )
    return (x - zero) * scale


@rule("constexpr_cast")
def _constant_cast(call: Call) -> Tensor:
    return call["source_val"]
