"""Rows of a table that are looked up by indexing, written for the exporter as an embedding is."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.export.rewriting import called, with_replaced

_aten = torch.ops.aten
_WHOLE = (torch.int32, torch.int64)


def with_lookups(program: ExportedProgram) -> ExportedProgram:
    """The program with `table[ids]` as an embedding, which becomes a Gather; the same object without any.

    The exporter makes a GatherND of it, which takes no int32.
    """
    return with_replaced(program, _is_lookup, _embedded)


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
        return called(graph, _aten.embedding.default, table, index)
    column = called(graph, _aten.unsqueeze.default, table, 1)
    return called(graph, _aten.squeeze.dim, called(graph, _aten.embedding.default, column, index), -1)
