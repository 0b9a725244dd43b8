"""The rules of all operators, a file for each family."""

from __future__ import annotations

from typing import Any

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.known import Known
from edgeprune.formats.onnxin.nodes import Node
from edgeprune.formats.onnxin.registry import RULES, SIZE_RULES
from edgeprune.formats.onnxin.rules import (
    attention,
    contraction,
    indexing,
    movement,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
    resizing,
    shapes,
    sizes,
    spectra,
)

_FAMILIES = (
    attention, contraction, indexing, movement, normalization, pointwise, pooling, recurrent, reduction, resizing,
    shapes, sizes, spectra,
)  # fmt: skip


def check_known(node: Node) -> None:
    """Raise InputError for an operator that no rule is written for."""
    if node.op not in RULES:
        raise InputError(f"{node.told}: expected an operator that edgeprune knows, got {node.op}")


def _has_plain_target(call: Call) -> bool:
    """Whether no shape with the batch in it is asked for, as that of an LSTM's first state: a tensor has one."""
    return call.node.op not in ("Expand", "Tile", "Reshape") or call.known(1).is_fixed


def apply(call: Call) -> Any:
    """What a node gives: of sizes alone, numbers that are known still; else tensors."""
    given = [position for position in range(len(call)) if call.has(position)]
    sized = call.node.op in SIZE_RULES and all(call.is_known(position) for position in given)
    sized = sized and _has_plain_target(call)
    if sized and any(isinstance(call.values.get(call.node.inputs[position]), Known) for position in given):
        return SIZE_RULES[call.node.op](call)
    return RULES[call.node.op](call)
