"""The operator table: one entry an operator, its label rule and its argument rewriter together.

A rule is `rule(analysis, call) -> Value | list[Value]`; a rewriter is `rewrite(edit, call) -> None` and changes the
arguments of the call's node so that it works on the kept slices. An operator without a rewriter has no argument
that depends on a prunable size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from edgeprune.graph.labels import Value

if TYPE_CHECKING:
    from edgeprune.graph.analysis import Analysis
    from edgeprune.graph.edit import Edit

LabelRule = Callable[["Analysis", "Call"], Any]
Rewriter = Callable[["Edit", "Call"], None]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One node with its arguments by schema name: tensors as `Value`, symbolic sizes as the ints they stand for.

    `shape` is the output's shape, or the list of them.
    """

    node: fx.Node
    name: str
    args: dict[str, Any]
    shape: Any

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument called `name`, or `default` where the overload has none."""
        return self.args.get(name, default)

    @property
    def operator(self) -> Any:
        """The operator itself."""
        return self.node.target

    @property
    def values(self) -> list[Value]:
        """Every tensor argument, lists flattened."""
        found = []
        for value in self.args.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Value):
                    found.append(item)
        return found

    @property
    def input(self) -> Value:
        """The first tensor argument."""
        return self.values[0]


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


def operator_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`; operators outside ATen keep their namespace."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    namespace, name = target._schema.name.split("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace == "aten" else f"{namespace}::{name}"
