"""The operator table: one entry an operator, its label rule and its argument rewriter together.

A rule is `rule(analysis, call) -> Value | list[Value]`; a rewriter is `rewrite(edit, call) -> None` and changes the
arguments of the call's node so that it works on the kept slices. An operator without a rewriter has no argument
that depends on a prunable size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edgeprune.graph.call import Call
from edgeprune.graph.rules import Labelling, Rewriting

LabelRule = Callable[[Labelling, Call], Any]
Rewriter = Callable[[Rewriting, Call], None]


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator's rule and rewriter; `moves` tells that it only moves data (an input stays *raw* through it)."""

    rule: LabelRule
    rewrite: Rewriter | None = None
    moves: bool = False


_TABLE: dict[str, Operator] = {}


def operator(*names: str, rewrite: Rewriter | None = None, moves: bool = False) -> Callable[[LabelRule], LabelRule]:
    """Enter a rule (and its rewriter) for the ATen operators `names`, all overloads, in-place forms included."""

    def enter(rule: LabelRule) -> LabelRule:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"operator {name} has two rules")
            _TABLE[name] = Operator(rule, rewrite, moves)
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
