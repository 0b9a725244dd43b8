"""Integers that stand for floats: what a quantised file says of them, and how one kind is made of another.

A product of scales becomes a whole multiplier of 31 bits and a shift, so that nothing but integers is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from edgeprune.export.c.graph import C_TYPES, CType, Held
from edgeprune.export.c.rules import Lowering, options, refusal

_BITS, _MOST_SHIFT = 31, 62
_MOST_ACTIVATION = 255


@dataclass(frozen=True, slots=True)
class Grid:
    """Which floats 8-bit integers stand for, `(integer - zero) * scale`, and the least and the most of them."""

    scale: float
    zero: int
    type: CType
    low: int
    high: int

    @property
    def floats(self) -> np.ndarray:
        """Of all 256 integers, by their bytes."""
        numbers = np.arange(256, dtype=np.uint8).view(np.uint8 if self.type == "uint8_t" else np.int8)
        return (numbers.astype(np.float64) - self.zero) * self.scale

    def integers(self, floats: np.ndarray) -> np.ndarray:
        """The nearest ones, within the range, as bytes."""
        found = np.rint(floats / self.scale) + self.zero
        return np.clip(found, self.low, self.high).astype(np.int64).astype(np.uint8)

    def within(self, low: float, high: float) -> Grid:
        """With the range cut to that of floats between two numbers."""
        bounds = [number if math.isinf(number) else round(number / self.scale) + self.zero for number in (low, high)]
        least, most = max(self.low, bounds[0]), min(self.high, bounds[1])
        return Grid(self.scale, self.zero, self.type, int(min(least, self.high)), int(max(most, self.low)))


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the result of an operator goes as integers: what becomes of it, by name, and the operators on the way."""

    name: str
    grid: Grid
    passed: tuple[str, ...]


def grid_of(low: Lowering, node: onnx.NodeProto) -> Grid:
    """That of an operator that makes floats integers, or integers floats: one for all numbers."""
    scale, zero = low.constant(node, 1), low.constant(node, 2)
    assert scale is not None
    if scale.size != 1:
        raise refusal(node, "with a scale for each channel of a computed value")
    integers = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    kind = low.net.types[integers]
    if kind not in ("uint8", "int8"):
        raise refusal(node, f"with {kind}")
    bounds = np.iinfo(kind)
    return Grid(float(scale.item()), 0 if zero is None else int(zero.item()), C_TYPES[kind], bounds.min, bounds.max)


def goal_of(low: Lowering, node: onnx.NodeProto) -> Goal | None:
    """The integers that a result becomes where nothing else reads it, between two numbers that it may be cut to."""
    name, bounds, passed = node.output[0], (-math.inf, math.inf), [node.output[0]]
    while True:
        readers = low.net.readers(name)
        if len(readers) != 1 or name in low.net.outputs:
            return None
        [reader] = readers
        name = reader.output[0]
        if reader.op_type == "QuantizeLinear":
            grid = grid_of(low, reader)
            return Goal(name, grid.within(*bounds), (*passed, name)) if grid.type == "uint8_t" else None
        cut = _cut(low, reader)
        if cut is None:
            return None
        bounds = max(bounds[0], cut[0]), min(bounds[1], cut[1])
        passed.append(name)


def _cut(low: Lowering, node: onnx.NodeProto) -> tuple[float, float] | None:
    """What an operator cuts numbers to, if that is all that it does."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    told = options(node, min=-math.inf, max=math.inf)
    given = low.constant(node, 1), low.constant(node, 2)
    least, most = (told[name] if one is None else float(one) for name, one in zip(("min", "max"), given, strict=True))
    return (float(least), float(most)) if least <= most else None


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Symmetric int8 weights whose first dim is that of the outputs, with a scale for each of these, `(out,)`."""

    values: np.ndarray
    scales: np.ndarray

    def bias(self, floats: np.ndarray, scale: float) -> np.ndarray | None:
        """A bias as int32 in the scales of the products; None where sums may exceed 32 bits."""
        found = np.rint(floats.astype(np.float64) / (self.scales * scale))
        rows = np.abs(self.values.reshape(len(self.values), -1).astype(np.int64)).sum(1)
        return found.astype(np.int64) if (np.abs(found) + rows * _MOST_ACTIVATION < 2**_BITS).all() else None


def weights_of(low: Lowering, name: str, out_dim: int) -> Weights | None:
    """The integers that stored floats are made of; None where they are none, or are shifted."""
    maker = low.net.makers.get(name)
    if name not in low.net.known or maker is None or maker.op_type != "DequantizeLinear":
        return None
    values, scale, zero = (low.constant(maker, place) for place in range(3))
    assert values is not None and scale is not None
    axis = options(maker, axis=1)["axis"] % values.ndim
    if values.dtype != np.int8 or np.any(zero) or (scale.size > 1 and axis != out_dim):
        return None
    turned = np.moveaxis(values, out_dim, 0)
    return Weights(turned, np.broadcast_to(scale.astype(np.float64).ravel(), (len(turned),)))


def multiplied(factor: float) -> tuple[int, int] | None:
    """A whole multiplier and a shift to the right that are a factor to 31 bits; None of one that is too large.

    Example: (1610612736, 32) for 0.375.
    """
    fraction, exponent = math.frexp(factor)
    multiplier, shift = round(fraction * 2**_BITS), _BITS - exponent
    if multiplier == 2**_BITS:
        multiplier, shift = multiplier // 2, shift - 1
    if shift > _MOST_SHIFT:
        multiplier, shift = multiplier >> min(shift - _MOST_SHIFT, _BITS), _MOST_SHIFT
    return (multiplier, shift) if shift >= 1 else None


def rescaling(low: Lowering, factors: np.ndarray) -> tuple[Held, Held] | None:
    """The multipliers and the shifts of factors, each as an array."""
    found = [multiplied(float(factor)) for factor in factors.ravel()]
    if any(one is None for one in found):
        return None
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return low.made.hold(pairs[:, 0], "int32_t"), low.made.hold(pairs[:, 1], "uint8_t")
