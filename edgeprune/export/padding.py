"""Padding ahead of a max pooling, kept apart from it."""

from __future__ import annotations

import copy
import math

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.binding import bind
from edgeprune.graph.call import operator_name
from edgeprune.graph.copies import copied_module


def with_padding_apart(program: ExportedProgram) -> ExportedProgram:
    """The program with an operator that changes nothing between a padding by a number and a max pooling.

    onnxruntime (1.31) makes one of the two, whatever the number: the pooling's own padding loses against every number,
    the one before it does not.
    """
    if not any(_is_lost(node) for node in program.graph.nodes):
        return program
    changed = copy.copy(program)
    changed._graph_module = copied_module(program.graph_module)
    for node in list(changed.graph.nodes):
        if _is_lost(node):
            lowest = torch.finfo(node.meta["val"].dtype).min
            with changed.graph.inserting_after(node):
                apart = changed.graph.call_function(torch.ops.aten.clamp_min.default, (node, lowest))
            apart.meta = dict(node.meta)
            node.replace_all_uses_with(apart, delete_user_cb=lambda user, apart=apart: user is not apart)
    changed.graph_module.recompile()
    return changed


def _is_lost(node: fx.Node) -> bool:
    """Whether the node pads by a number that a max pooling then reads."""
    if node.op != "call_function" or operator_name(node.target) not in ("constant_pad_nd", "pad"):
        return False
    call = bind(node, lambda n: n)
    by_number = call.get("mode", "constant") == "constant" and (call["value"] or 0.0) != -math.inf
    return by_number and any(operator_name(user.target).startswith("max_pool") for user in node.users)
