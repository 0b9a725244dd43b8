"""What an operator's rule may ask of the labelling, and what its rewriter may ask of the graph under surgery.

`Analysis` is the one, `Edit` the other; both look operators up in the table that these rules stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, fx

from edgeprune.graph.call import Call
from edgeprune.graph.labels import Layer, Value
from edgeprune.graph.reasons import Cause


class Labelling(Protocol):
    """The labels of a program while they are found; `settled` once nothing but free choices is left.

    `attention` is `"heads"` or `"head-dim"`: what of an attention may go.
    """

    attention: str
    settled: bool

    def unite(self, left: Tensor, right: Tensor) -> None:
        """The units of both are removed together or not at all."""

    def lock(self, layer: Layer, told: Cause | str) -> None:
        """No unit of this layer may be removed; see `reasons` for the causes, a text completes "OPERATOR ..."."""

    def fix(self, layer: Layer, dim: int, told: Cause | str) -> None:
        """The layer must not vary along `dim`: units along it alone are locked, others are united along it."""

    def look_up(self, layer: Layer, dim: int, told: Cause | str) -> None:
        """As `fix`, but where it is said which of the rows that the present call looks up stay."""

    def prefer(self, layer: Layer, dim: int, strong: bool = False) -> None:
        """Where nothing forces it otherwise, this layer should vary along `dim` alone."""

    def choose_later(self, layers: Sequence[Layer]) -> None:
        """Along which dim these layers vary is left to other calls, and else to the number of units."""

    def is_undecided(self, layer: Layer) -> bool:
        """Whether the present call leaves it to others along which dim this layer varies."""

    def value(self, shape: Sequence[int], layers: Sequence[Layer]) -> Value:
        """A rule's result: layers that label nothing are dropped, and one that does not vary is locked."""

    def source(self, kind: str, name: str, dim: int | None, count: int) -> Tensor:
        """The present labels of a source, `(count,)`; handed out when it is first met."""

    def constant(self, node: fx.Node) -> Value:
        """A computed constant that can be sliced like a parameter: along all dims, integers where they repeat."""

    def reads_zero(self, call: Call, pattern: tuple[bool, ...]) -> bool:
        """Whether a pointwise call gives 0 where the operands marked in `pattern` are 0, whatever the others are."""

    def mark_renormalised(self, layer: Layer) -> None:
        """Removing these units changes the statistics of a normalisation."""

    def add_factors(self, layers: Sequence[Layer]) -> None:
        """The cost of the present node is proportional to the kept share of each of these layers."""

    def add_term(self, share: float, layers: Sequence[Layer]) -> None:
        """A share of the present node's cost is proportional to the kept share of each of these layers alone."""


class Rewriting(Protocol):
    """A graph module under surgery, beside the labels of the graph that it was made from."""

    def kept(self, value: Value, dim: int) -> np.ndarray:
        """Indices along `dim` that stay, ascending; of an input's raw part, those that its readers get."""

    def kept_size(self, value: Value, dim: int) -> int:
        """How many indices stay along `dim`."""

    def kept_shape(self, value: Value) -> tuple[int, ...]:
        """The shape that is left of a value."""

    def result(self, call: Call) -> Any:
        """The value (or values) that the call returns."""

    def source(self, call: Call) -> Any:
        """The node of the call's first argument."""

    def raw(self, call: Call, name: str) -> Any:
        """The argument called `name` as it stands in the graph: numbers and nodes."""

    def set(self, call: Call, name: str, value: Any) -> None:
        """Set the argument called `name`."""

    def replace(self, call: Call, target: Any, args: tuple[Any, ...], **keywords: Any) -> None:
        """Make the call another operator's."""

    def select(self, call: Call, dim: int, positions: np.ndarray) -> None:
        """Make the call an index_select of `positions` in the kept slices of its first argument."""

    def indices(self, call: Call, positions: np.ndarray) -> fx.Node:
        """A constant index vector for the call."""

    def constant(self, call: Call, array: np.ndarray) -> fx.Node:
        """A constant mask or table for the call."""

    def scale(self, call: Call, factor: float) -> None:
        """Multiply the call's result."""

    def scaled(self, size: Any, old: int, new: int) -> Any:
        """A size argument after the cut: -1 stays, numbers become `new`, symbolic sizes are scaled by new / old."""
