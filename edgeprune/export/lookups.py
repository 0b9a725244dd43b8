"""Rows of a table that are looked up by indexing, written for the exporter as an embedding is."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

_aten = torch.ops.aten
_WHOLE = (torch.int32, torch.int64)


def with_lookups(program: ExportedProgram) -> ExportedProgram:
    """The program with `table[ids]` as an embedding, which becomes a Gather; the same object without any.

    The exporter makes a GatherND of it, which takes no int32.
    """
    if not any(map(_is_lookup, program.graph.nodes)):
        return program
    changed = copy.copy(program)
    changed._graph_module = copy.deepcopy(program.graph_module)
    changed._graph_signature = copy.deepcopy(program.graph_signature)
    for node in filter(_is_lookup, list(changed.graph.nodes)):
        with changed.graph.inserting_before(node):
            result = _embedded(changed.graph, node)
        node.replace_all_uses_with(result)
        changed.graph_signature.replace_all_uses(node.name, result.name)
        changed.graph.erase_node(node)
    changed.graph_module.recompile()
    return changed


def _is_lookup(node: fx.Node) -> bool:
    """Whether it picks rows of a tensor of one or two dims by one index of whole numbers."""
    if node.target is not _aten.index.Tensor:
        return False
    args: Any = node.args
    table, (first, *others) = args[0], args[1]
    is_whole = isinstance(first, fx.Node) and first.meta["val"].dtype in _WHOLE
    return is_whole and not any(others) and table.meta["val"].dim() in (1, 2)


def _embedded(graph: fx.Graph, node: fx.Node) -> fx.Node:
    args: Any = node.args
    table, index = args[0], args[1][0]
    if table.meta["val"].dim() == 2:
        return _call(graph, _aten.embedding.default, table, index)
    column = _call(graph, _aten.unsqueeze.default, table, 1)
    return _call(graph, _aten.squeeze.dim, _call(graph, _aten.embedding.default, column, index), -1)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    made = graph.call_function(target, args)
    made.meta["val"] = target(*fx.node.map_arg(args, lambda node: node.meta["val"]))
    return made
