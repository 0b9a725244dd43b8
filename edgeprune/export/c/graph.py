"""What a network is before it becomes text: values in an arena, and steps that are calls of kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgeprune.errors import InputError

CType = Literal["float", "uint8_t", "int8_t", "int32_t"]
C_TYPES: dict[str, CType] = {  # what an arena holds; ids and places are below 2^31
    "float32": "float",
    "uint8": "uint8_t",
    "int8": "int8_t",
    "int32": "int32_t",
    "int64": "int32_t",
}
SIZES = {"float": 4, "int32_t": 4, "uint8_t": 1, "int8_t": 1}


@dataclass(frozen=True, slots=True)
class View:
    """Numbers of a value in a shape, from one of its elements on, row by row; several may show the same value."""

    value: int
    shape: tuple[int, ...]
    type: CType
    start: int = 0

    @property
    def n_elements(self) -> int:
        """1 of a single number."""
        return math.prod(self.shape)


_KINDS = {"float": "f32", "uint8_t": "u8", "int8_t": "u8", "int32_t": "i32"}


def kind_of(view: View) -> str:
    """What the kernels for numbers of this type end in; bytes are moved whatever they stand for."""
    return _KINDS[view.type]


@dataclass(frozen=True, slots=True)
class Held:
    """A constant array, by its number."""

    number: int
    type: str


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """Numbers of the file, or the fields of a struct of sizes where `type` is no number's."""

    type: str
    values: np.ndarray


Argument = View | Held | str  # the last one is C as it stands


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel's name, and what it is called with."""

    kernel: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Calls that write one value together.

    What they read is told by the values' numbers, and `over` are those of them whose memory may be that of `writes`.
    """

    calls: tuple[Call, ...]
    reads: frozenset[int]
    writes: int
    over: frozenset[int] = frozenset()


@dataclass(slots=True, eq=False)
class Lowered:
    """A network as steps over values, whose sizes are in bytes; inputs and outputs lie in the arena too."""

    sizes: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    inputs: list[View] = field(default_factory=list)
    outputs: list[View] = field(default_factory=list)

    def new(self, shape: Sequence[int], kind: CType) -> View:
        """A value of its own."""
        self.sizes.append(math.prod(shape) * SIZES[kind])
        return View(len(self.sizes) - 1, tuple(map(int, shape)), kind)

    def hold(self, values: np.ndarray, kind: str) -> Held:
        """A constant; raises InputError for numbers that C has no text for."""
        if kind == "float" and np.isnan(values).any():
            raise InputError("C: expected weights that are numbers, got NaN")
        self.constants.append(Constant(kind, np.ascontiguousarray(values)))
        return Held(len(self.constants) - 1, kind)

    def add(self, out: View, *calls: Call, over: Sequence[View] = ()) -> View:
        """A step that writes all of `out`.

        It may write over one of `over` where that shows all of its value, and nothing else of it is read.
        """
        views = [one for call in calls for one in call.arguments if isinstance(one, View)]
        read = [one.value for one in views if one.value != out.value]
        whole = {one.value for one in over if one.n_elements * SIZES[one.type] == self.sizes[one.value]}
        once = {value for value in whole if read.count(value) == 1}  # else it would be read after it is written
        self.steps.append(Step(calls, frozenset(read), out.value, frozenset(once)))
        return out

    def copied(self, view: View) -> View:
        """What a view shows, as a value of its own."""
        out = self.new(view.shape, view.type)
        return self.add(out, Call(f"load_{kind_of(view)}", (view, out, str(out.n_elements))))


def literal(value: float) -> str:
    """A float of C that reads back as the same number, e.g. `0.1f`; infinity, as in a mask, by its name."""
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    number = np.float32(value)
    if not np.isfinite(number):
        raise InputError(f"C: expected a number within the range of float, got {value:.6g}")
    text = f"{float(number):.9g}"
    return (text if any(mark in text for mark in ".e") else f"{text}.0") + "f"
