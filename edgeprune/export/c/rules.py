"""The registry of rules, one for each kind of operator, and what they are given: a network being made into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from edgeprune.errors import InputError
from edgeprune.export.c.expressions import Expression
from edgeprune.export.c.graph import C_TYPES, Argument, Call, CType, Held, Lowered, View, kind_of, literal
from edgeprune.export.c.reading import Network, attributes, where

Rule = Callable[["Lowering", onnx.NodeProto], None]
RULES: dict[str, Rule] = {}
_LONG = 400  # characters of a function
_MOST = 2**31 - 1  # that an int32_t counts


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function for operators of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integers that stand for floats: `(integer - zero) * scale`."""

    view: View
    scale: float
    zero: int


@dataclass(slots=True, eq=False)
class Lowering:
    """Which views the values of a network have become, and the steps so far.

    `quantized` are floats that exist as integers, `expressions` functions of another value, until something reads them
    as floats; `done` are the operators that another one has taken with it, by their first output; `kinds` are types
    of values that the file has in another one.
    """

    net: Network
    made: Lowered = field(default_factory=Lowered)
    views: dict[str, View] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    expressions: dict[str, Expression] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    kinds: dict[str, CType] = field(default_factory=dict)

    def view(self, name: str) -> View:
        """A computed value, or a constant copied into the arena; integers that stand for one become floats."""
        if name in self.views:
            return self.views[name]
        if name in self.quantized:
            self.views[name] = self._dequantized(self.quantized[name])
        elif name in self.expressions:
            self.views[name] = self._mapped(self.expressions[name], self.new(self.net.shapes[name], name))
        else:
            array = self.net.known[name]
            out = self.new(array.shape, name)
            held = self.held(array, out.type)
            self.views[name] = self.made.add(out, Call(f"load_{kind_of(out)}", (held, out, str(array.size))))
        return self.views[name]

    def _dequantized(self, found: Quantized) -> View:
        out = self.made.new(found.view.shape, "float")
        kind = "u8" if found.view.type == "uint8_t" else "s8"
        given: tuple[Argument, ...] = (
            found.view, out, str(out.n_elements), literal(found.scale), str(found.zero),
        )  # fmt: skip
        return self.made.add(out, Call(f"dequantize_{kind}", given))

    def _mapped(self, found: Expression, out: View) -> View:
        x = self.view(found.base)
        if x.type != "float":
            raise InputError(f"C: expected functions of float32, got one of {self.net.types[found.base]} {found.base}")
        return self.made.add(out, Call(f"map:{found.text}", (x, out, str(out.n_elements))), over=[x])

    def expression(self, name: str) -> Expression:
        """A value as a function of another one, where it waits to be computed and nothing else reads it."""
        found = self.expressions.get(name)
        if found is None or name in self.views or name in self.net.outputs or len(found.text) > _LONG:
            return Expression(name)
        return found if len(self.net.readers(name)) == 1 else Expression(name)

    def check_float(self, node: onnx.NodeProto, n_read: int | None = None) -> None:
        """Raise InputError for an operator that gives something else than float32, or reads it first of all."""
        self.check_floats(node, (*node.input[:n_read], *node.output))

    def check_floats(self, node: onnx.NodeProto, names: Sequence[str]) -> None:
        """Raise InputError for an operator of which one of these values is something else than float32."""
        for name in names:
            if name and self.net.types[name] != "float32":
                raise refusal(node, f"of {self.net.types[name]}")

    def number(self, value: float, kind: CType) -> str:
        """A constant of a type."""
        return literal(value) if kind == "float" else str(int(value))

    def held(self, array: np.ndarray, kind: CType) -> Held:
        """A constant array; raises InputError for whole numbers of more than 32 bits."""
        if kind == "int32_t" and array.size and np.abs(array.astype(np.float64)).max() > _MOST:
            raise InputError(f"C: expected whole numbers below 2^31, got {np.abs(array.astype(np.float64)).max():.0f}")
        return self.made.hold(array, kind)

    def operand(self, name: str) -> View | Held:
        """A computed value, or a constant of floats where it lies."""
        return self.made.hold(self.known(name), "float") if name in self.net.known else self.view(name)

    def known(self, name: str) -> np.ndarray:
        """A constant of floats."""
        array = self.net.known[name]
        if array.dtype != np.float32:
            raise InputError(f"C: expected constants of float32, got {array.dtype} in {name}")
        return array

    def constant(self, node: onnx.NodeProto, place: int) -> np.ndarray | None:
        """An input that has to be known; None where it is left out."""
        name = node.input[place] if len(node.input) > place else ""
        if not name:
            return None
        if name not in self.net.known:
            raise refusal(node, f"whose input {place} is no constant")
        return self.net.known[name]

    def new(self, shape: Sequence[int], name: str) -> View:
        """A new value for one of the network, in its type."""
        return self.made.new(shape, self.type_of(name))

    def type_of(self, name: str) -> CType:
        """The type in C of a value; raises InputError for one that an arena has not."""
        if name in self.kinds:
            return self.kinds[name]
        kind = self.net.types[name]
        if kind not in C_TYPES:
            node = self.net.makers.get(name)
            what = f"{where(node)} that gives {kind}" if node is not None else f"input of {kind}"
            raise InputError(f"C has no {what}")
        return C_TYPES[kind]

    def result(self, node: onnx.NodeProto, place: int = 0) -> View:
        """A new value for an output of an operator."""
        name = node.output[place]
        self.views[name] = self.new(self.net.shapes[name], name)
        return self.views[name]

    def show(self, node: onnx.NodeProto, view: View, place: int = 0) -> None:
        """Let an output be what a view shows, in its own shape."""
        name = node.output[place]
        self.views[name] = View(view.value, self.net.shapes[name], view.type, view.start)

    def sizes(self, kind: str, *numbers: int) -> Held:
        """A struct of sizes."""
        if any(abs(number) > _MOST for number in numbers):
            raise InputError(f"C: expected sizes below 2^31, got {max(numbers)}")
        return self.made.hold(np.array(numbers, np.int64), kind)


def refusal(node: onnx.NodeProto, why: str = "") -> InputError:
    """What names an operator that there is no C for, and its layer."""
    return InputError(f"C has no {where(node)}{f' {why}' if why else ''}")


def options(node: onnx.NodeProto, **defaults: Any) -> dict[str, Any]:
    """The attributes of an operator with what those are that it leaves out."""
    return {**defaults, **attributes(node)}
