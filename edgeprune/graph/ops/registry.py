"""The operator table: one entry an operator, its kind, its label rule and its argument rewriter together.

A rule is `rule(analysis, call) -> Value | list[Value]`; a rewriter is `rewrite(edit, call) -> None` and changes the
arguments of the call's node so that it works on the kept slices. An operator without a rewriter has no argument
that depends on a prunable size. What else asks what an operator does (which element depends on which, what an input is
followed through, what is timed) goes by its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from edgeprune.graph.call import Call, operator_name
from edgeprune.graph.rules import Labelling, Rewriting

LabelRule = Callable[[Labelling, Call], Any]
Rewriter = Callable[[Rewriting, Call], None]


class Kind(Enum):
    """What an operator does to the elements of what it takes."""

    MOVE = "the elements of one tensor, at other places; padding too"
    COPY = "the same elements at the same places"
    CONVERSION = "the same elements, of the type of a second tensor"
    JOIN = "the elements of several tensors, side by side"
    OVERWRITE = "the elements of a second tensor, in the shape of the first"
    ASSEMBLY = "elements of tensors cut, repeated or written into each other; the operator itself runs on marks of them"
    POINTWISE = "each element by itself; several tensors are broadcast"
    CHANNELWISE = "each element by itself, with a parameter for each index of dim 1"
    GATE = "the halves of a dim, element by element"
    LINEAR = "a layer `y[..., o] = sum_i x[..., i] w[o, i] + b[o]`"
    PRODUCT = "sums of products, linear in each factor"
    CONVOLUTION = "a layer that sums over channels and windows; transposed ones too"
    ATTENTION = "softmax(q k') v"
    DISTANCE = "how far rows are from each other"
    NORMALISATION = "statistics taken out, affine parameters put in"
    WEIGHT_NORM = "a weight as a direction and a length"
    REDUCTION = "over whole dims; of two tensors each element by itself"
    SCAN = "along one dim, which stays: a softmax, a running sum, an order"
    TRANSFORM = "over whole dims that stay: Fourier transforms"
    PAIR = "two real numbers as a complex one, or back"
    WINDOW = "over the last dims, the positions: pooling and resampling"
    LOOKUP = "read from or written to places that are computed"
    RECURRENT = "step by step along time"
    CONSTANT = "takes a shape alone"
    CHECK = "gives nothing"


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator's kind, rule and rewriter."""

    kind: Kind
    rule: LabelRule
    rewrite: Rewriter | None = None

    @property
    def moves(self) -> bool:
        """Whether it only moves data: an input stays *raw* through it."""
        return self.kind in (Kind.MOVE, Kind.COPY)


_TABLE: dict[str, Operator] = {}


def operator(*names: str, kind: Kind, rewrite: Rewriter | None = None) -> Callable[[LabelRule], LabelRule]:
    """Enter a rule (and its rewriter) for the ATen operators `names`, all overloads, in-place forms included."""

    def enter(rule: LabelRule) -> LabelRule:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"operator {name} has two rules")
            _TABLE[name] = Operator(kind, rule, rewrite)
        return rule

    return enter


def lookup(target: Any, name: str) -> Operator | None:
    """The entry of an operator; what PyTorch tags as pointwise shares one."""
    if name == "where" and getattr(target, "_overloadname", "") == "default":
        return None  # of a condition alone: the indices where it holds
    entry = _TABLE.get(name)
    if entry is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return _TABLE["pointwise"]
    return entry


def kind_of(target: Any) -> Kind | None:
    """What an operator does, or None where it is not in the table."""
    entry = lookup(target, operator_name(target))
    return None if entry is None else entry.kind


def operators() -> dict[str, Operator]:
    """A copy of the table, by name."""
    return dict(_TABLE)
