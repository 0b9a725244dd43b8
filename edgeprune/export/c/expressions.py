"""Functions of one number, in C and in numpy: operators that compute each number of its own become one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.export.c.graph import literal

Function = Callable[[np.ndarray], np.ndarray]
_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A function of the value `base`: its text in C, where `v` is a number of that, and the same in numpy."""

    base: str
    text: str = "v"
    function: Function = lambda x: x

    def then(self, outer: Outer) -> Expression:
        """Another function of what this one gives."""
        inner = self.function
        return Expression(self.base, outer.text.replace("{v}", self.text), lambda x: outer.function(inner(x)))

    def joined(self, other: Expression, operator: Binary) -> Expression:
        """An operator of this and another function of the same value."""
        left, right = self.function, other.function
        text = operator.text.replace("{u}", self.text).replace("{v}", other.text)
        return Expression(self.base, text, lambda x: operator.function(left(x), right(x)))


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """A function of `{v}`."""

    text: str
    function: Function


@dataclass(frozen=True, slots=True, eq=False)
class Binary:
    """A function of `{u}` and `{v}`."""

    text: str
    function: Callable[[np.ndarray, np.ndarray], np.ndarray]


BINARY: Mapping[str, Binary] = {
    "Add": Binary("({u} + {v})", np.add),
    "Sub": Binary("({u} - {v})", np.subtract),
    "Mul": Binary("({u} * {v})", np.multiply),
    "Div": Binary("({u} / {v})", np.divide),
    "Pow": Binary("powf({u}, {v})", np.power),
    "Min": Binary("lesser({u}, {v})", np.minimum),
    "Max": Binary("greater({u}, {v})", np.maximum),
    "PRelu": Binary("leaky({u}, {v})", lambda u, v: np.where(u < 0, u * v, u)),
}
_PLAIN: Mapping[str, Outer] = {
    "Relu": Outer("greater({v}, 0.0f)", lambda x: np.maximum(x, 0)),
    "Sigmoid": Outer("sigmoid({v})", lambda x: 1 / (1 + np.exp(-x))),
    "Tanh": Outer("tanhf({v})", np.tanh),
    "Erf": Outer("erff({v})", np.vectorize(math.erf, otypes=[np.float64])),
    "Exp": Outer("expf({v})", np.exp),
    "Log": Outer("logf({v})", np.log),
    "Sqrt": Outer("sqrtf({v})", np.sqrt),
    "Abs": Outer("fabsf({v})", np.abs),
    "Neg": Outer("(-{v})", np.negative),
    "Floor": Outer("floorf({v})", np.floor),
    "Ceil": Outer("ceilf({v})", np.ceil),
    "Round": Outer("rintf({v})", np.rint),
    "Sin": Outer("sinf({v})", np.sin),
    "Cos": Outer("cosf({v})", np.cos),
    "Reciprocal": Outer("(1.0f / {v})", np.reciprocal),
    "Softplus": Outer("softplus({v})", lambda x: np.logaddexp(x, 0)),
    "Softsign": Outer("softsign({v})", lambda x: x / (1 + np.abs(x))),
    "HardSwish": Outer("hard_swish({v})", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Mish": Outer("mish({v})", lambda x: x * np.tanh(np.logaddexp(x, 0))),
}
UNARY = (*_PLAIN, "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "ThresholdedRelu", "Gelu", "Swish")


def unary(operator: str, told: Mapping[str, Any] = _NONE) -> Outer:
    """The function of an operator with these attributes."""
    return _PLAIN[operator] if operator in _PLAIN else _WITH_NUMBERS[operator](told)


def clip(low: float, high: float) -> Outer:
    """Between two numbers, either of which may be infinite."""
    text = "{v}"
    text = text if low == -math.inf else f"greater({text}, {literal(low)})"
    text = text if high == math.inf else f"lesser({text}, {literal(high)})"
    return Outer(text, lambda x: np.clip(x, low, high))


def with_scalar(operator: str, number: float, is_left: bool) -> Outer:
    """A binary operator with a constant on one side."""
    binary, text = BINARY[operator], literal(number)
    text = f"({text})" if text.startswith("-") else text
    if is_left:
        return Outer(binary.text.replace("{u}", text), lambda x: binary.function(np.array(number), x))
    changed = binary.text.replace("{v}", text).replace("{u}", "{v}")
    return Outer(changed, lambda x: binary.function(x, np.array(number)))


def _leaky(told: Mapping[str, Any]) -> Outer:
    slope = told.get("alpha", 0.01)
    return Outer(f"leaky({{v}}, {literal(slope)})", lambda x: np.where(x < 0, x * slope, x))


def _elu(told: Mapping[str, Any]) -> Outer:
    alpha = told.get("alpha", 1.0)
    return Outer(f"elu({{v}}, {literal(alpha)})", lambda x: np.where(x < 0, alpha * np.expm1(x), x))


def _selu(told: Mapping[str, Any]) -> Outer:
    alpha, gamma = told.get("alpha", 1.6732632423543772), told.get("gamma", 1.0507009873554805)
    text = f"({literal(gamma)} * elu({{v}}, {literal(alpha)}))"
    return Outer(text, lambda x: gamma * np.where(x < 0, alpha * np.expm1(x), x))


def _celu(told: Mapping[str, Any]) -> Outer:
    alpha = told.get("alpha", 1.0)
    text = f"celu({{v}}, {literal(alpha)})"
    return Outer(text, lambda x: np.where(x < 0, alpha * np.expm1(x / alpha), x))


def _hard_sigmoid(told: Mapping[str, Any]) -> Outer:
    slope, shift = told.get("alpha", 0.2), told.get("beta", 0.5)
    text = f"lesser(greater({literal(slope)} * {{v}} + {literal(shift)}, 0.0f), 1.0f)"
    return Outer(text, lambda x: np.clip(slope * x + shift, 0, 1))


def _thresholded(told: Mapping[str, Any]) -> Outer:
    alpha = told.get("alpha", 1.0)
    return Outer(f"thresholded({{v}}, {literal(alpha)})", lambda x: np.where(x > alpha, x, 0))


def _gelu(told: Mapping[str, Any]) -> Outer:
    if told.get("approximate", "none") == "tanh":
        return Outer(
            "gelu_tanh({v})", lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        )
    erf = _PLAIN["Erf"].function
    return Outer("gelu({v})", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))))


def _swish(told: Mapping[str, Any]) -> Outer:
    alpha = told.get("alpha", 1.0)
    return Outer(f"swish({{v}}, {literal(alpha)})", lambda x: x / (1 + np.exp(-alpha * x)))


_WITH_NUMBERS: Mapping[str, Callable[[Mapping[str, Any]], Outer]] = {
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "ThresholdedRelu": _thresholded,
    "Gelu": _gelu,
    "Swish": _swish,
}
