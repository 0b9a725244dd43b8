"""One rule for each ONNX operator: what it is in PyTorch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.formats.onnxin.call import Call

Rule = Callable[["Call"], Any]
RULES: dict[str, Rule] = {}
SIZE_RULES: dict[str, Rule] = {}  # of values that are known while the network is captured


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as what these operators do to tensors."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def size_rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register a function as what these operators do to known values."""

    def register(function: Rule) -> Rule:
        SIZE_RULES.update(dict.fromkeys(ops, function))
        return function

    return register
