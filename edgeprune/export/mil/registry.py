"""Operators of MIL by name: each a function of a call, which has the operator's inputs by their names in MIL.

https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """One operator with its inputs: tensors (floats in 32 bits, whatever the program says), or tuples of them."""

    op: str
    inputs: Mapping[str, Any]
    n_outputs: int = 1

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]

    def has(self, name: str) -> bool:
        """Whether an input is given."""
        return self.inputs.get(name) is not None

    def maybe(self, name: str) -> Tensor | None:
        """A tensor, None where it is not given."""
        return self.inputs.get(name)

    def number(self, name: str, default: float = 0.0) -> float:
        """One number."""
        return float(self.inputs[name]) if self.has(name) else default

    def flag(self, name: str, default: bool = False) -> bool:
        """Whether it is so."""
        return bool(self.inputs[name]) if self.has(name) else default

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Whole numbers."""
        return [int(value) for value in self.inputs[name].reshape(-1)] if self.has(name) else list(default)

    def text(self, name: str, default: str = "") -> str:
        """A word."""
        return str(self.inputs[name]) if self.has(name) else default


Rule = Callable[[Call], Tensor | Sequence[Tensor]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what these operators compute."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


def scalar_like(value: float, x: Tensor) -> Tensor:
    """A number of the type of `x`."""
    return torch.tensor(value, dtype=x.dtype)
