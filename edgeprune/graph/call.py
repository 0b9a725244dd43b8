"""A node as a rule sees it: its arguments by schema name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgeprune.graph.labels import Value


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


def operator_name(target: Any) -> str:
    """`aten.relu_.default` -> `relu`; operators outside ATen keep their namespace."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    namespace, name = target._schema.name.split("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace == "aten" else f"{namespace}::{name}"
