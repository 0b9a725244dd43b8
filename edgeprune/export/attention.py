"""Attention in the form that PyTorch's ONNX exporter takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.export.rewriting import called, with_replaced

_aten = torch.ops.aten
_attention = _aten.scaled_dot_product_attention.default
_NAMES = ("query", "key", "value", "attn_mask")
_RANK = 4  # (batch, heads, positions, channels): the only one that the exporter knows


def with_plain_attention(program: ExportedProgram) -> ExportedProgram:
    """The program with every attention over four dims, and a copy of what it gives.

    PyTorch's kernels leave their result in a memory layout of their own, by which the exporter writes down what
    follows; it then replaces attention by operators that give the plain layout, and fails. ONNX has no copies: they
    leave no trace in the file.
    """
    return with_replaced(program, lambda node: node.target is _attention, _plain)


def _plain(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """What stands for one attention."""
    operands = {name: node.kwargs.get(name) for name in _NAMES} | dict(zip(_NAMES, node.args, strict=False))
    others = {name: value for name, value in node.kwargs.items() if name not in _NAMES}
    rank = node.meta["val"].dim()
    if rank != _RANK:
        operands = {name: _in_four_dims(graph, value, operands["query"]) for name, value in operands.items()}
    attended = called(graph, _attention, *operands.values(), *node.args[len(_NAMES) :], **others)
    copied = called(graph, _aten.clone.default, attended, memory_format=torch.contiguous_format)
    if rank == _RANK:
        return copied
    query, value = node.args[0], node.args[2]
    sizes = [*(_size(graph, query, dim) for dim in range(rank - 1)), _size(graph, value, rank - 1)]
    return called(graph, _aten.reshape.default, copied, sizes)


def _in_four_dims(graph: fx.Graph, node: Any, query: Any) -> Any:
    """An operand with all dims but the last three as one; a mask that is the same for all of those stays as it is."""
    if not isinstance(node, fx.Node):
        return node
    rank, full = node.meta["val"].dim(), query.meta["val"].dim()
    if rank == full < _RANK:  # (batch, positions, channels): one head
        return called(graph, _aten.unsqueeze.default, node, 1)
    if rank < _RANK:
        return node
    leading = [_size(graph, query, dim) for dim in range(rank - 3)]
    whole = called(graph, _aten.expand.default, node, [*leading, -1, -1, -1])
    return called(
        graph, _aten.reshape.default, whole, [-1, *(_size(graph, whole, dim) for dim in range(rank - 3, rank))]
    )


def _size(graph: fx.Graph, node: Any, dim: int) -> Any:
    """A size as a number, or as a node where it is free."""
    size = node.meta["val"].shape[dim]
    return size if isinstance(size, int) else called(graph, _aten.sym_size.int, node, dim)
