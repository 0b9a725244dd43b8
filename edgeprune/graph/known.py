"""Operators without a rule that PyTorch itself defines by others are replaced by those."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram, default_decompositions
from torch.export.decomp_utils import CustomDecompTable
from torch.export.graph_signature import InputKind

from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.graph.decompose import decomposed
from edgeprune.graph.memory import constants
from edgeprune.graph.ops.registry import lookup


def with_known_operators(program: ExportedProgram) -> ExportedProgram:
    """The program without operators that have no rule and are made of ones that may have; else the same object.

    `aten.hstack` becomes `aten.cat`, `aten.cosine_similarity` products, sums and divisions.
    """
    seen: set[Any] = set()
    while unknown := _unknown(program) - seen:
        seen |= unknown
        table = {target: _definitions()[target] for target in unknown if target in _definitions()}
        if table:
            taken_apart = decomposed(program, table)
            if _has_effects(taken_apart):
                return program  # one of them checks its result as it runs (a matrix inverse): they stay unknown
            program = taken_apart
    return program


@cache
def _definitions() -> CustomDecompTable:
    """What PyTorch knows to take apart; it looks through all of its operators for it, for a third of a second."""
    return default_decompositions()


def _has_effects(program: ExportedProgram) -> bool:
    """Whether the order of operators is kept by tokens, which are inputs of their own."""
    return any(spec.kind is InputKind.TOKEN for spec in program.graph_signature.input_specs)


def _unknown(program: ExportedProgram) -> set[Any]:
    """Operators without a rule; what is made of constants alone is computed and needs none."""
    candidates = {node for node in program.graph.nodes if _has_no_rule(node)}
    return {node.target for node in candidates - constants(program)} if candidates else set()


def _has_no_rule(node: fx.Node) -> bool:
    """Whether an operator from tensors to tensors has no rule; sizes, constants and assertions need none."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or lookup(target, operator_name(target)) is not None:
        return False
    return all(
        any(binding.holds_tensor(part.meta.get("val")) for part in parts) for parts in ([node], node.all_input_nodes)
    )
