"""Choices between graphs (If) by sizes, as PyTorch's older exporter writes a squeeze: the branch that runs is taken in.

The choice stays before its branch, to see at each run that the sizes still choose it.
"""

from __future__ import annotations

from dataclasses import replace

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.nodes import Branch, Node
from edgeprune.formats.onnxin.registry import rule

_CHOSEN = "edgeprune.chosen"  # an attribute: which branch was taken in


@rule("If")
def _check_choice(call: Call) -> tuple[()]:
    """Nothing, as the branch that was taken in gives the outputs; raises InputError where another is to run."""
    wanted, chosen = _condition(call), call.attribute(_CHOSEN)
    call.refuse_if(chosen is not None and wanted != chosen, "one graph that always runs", "a choice by the batch")
    return ()


def chosen_branch(call: Call) -> tuple[Node, tuple[Node, ...]]:
    """An If that is decided, and the nodes that give its outputs."""
    node, wanted = call.node, _condition(call)
    branch: Branch = node.branches["then_branch" if wanted else "else_branch"]
    given = (
        Node(node.name, "Identity", (source,), (target,), {})
        for source, target in zip(branch.outputs, node.outputs, strict=True)
    )
    decided = replace(node, attributes={_CHOSEN: wanted}, branches={})
    return decided, (*branch.nodes, *given)


def _condition(call: Call) -> bool:
    """Which branch is to run; raises InputError where the data say it, or a size that is free."""
    if not call.is_known(0) or not call.known(0).is_fixed:
        raise InputError("expected one graph that always runs, got a choice between graphs that is made as it runs")
    return bool(call.scalar(0))
