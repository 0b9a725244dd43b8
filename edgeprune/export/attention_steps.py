"""Attention written out as the products that it is, for runtimes that have no kernel for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

_aten = torch.ops.aten
_attention = _aten.scaled_dot_product_attention.default
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def write_out_attention(program: ExportedProgram) -> None:
    """Replace, in place, attention `(..., positions, channels)` of fixed sizes by `softmax(q k' / sqrt(d) + mask) v`.

    ExecuTorch's own decomposition also asks of every row whether all of it is masked, and copies the operands, which
    XNNPACK leaves to slow portable kernels. What has a mask of booleans, is causal, drops out or shares heads is left
    to it.
    """
    nodes = program.graph.find_nodes(op="call_function", target=_attention)
    for node in nodes:
        call = _bound(node)
        if _is_plain(call):
            result = _written_out(program.graph, node, call)
            node.replace_all_uses_with(result)
            program.graph_signature.replace_all_uses(node.name, result.name)
            program.graph.erase_node(node)
    if nodes:
        # Attention gives a memory layout of its own, by which the program was traced; the products give the plain one.
        for view in program.graph.find_nodes(op="call_function", target=_aten.view.default):
            view.target = _aten.reshape.default
        program.graph_module.recompile()


def _bound(node: fx.Node) -> dict[str, Any]:
    given = dict(zip(_NAMES, node.args, strict=False)) | dict(node.kwargs)
    return {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False} | given


def _is_plain(call: dict[str, Any]) -> bool:
    shapes = [tuple(call[name].meta["val"].shape) for name in ("query", "key", "value")]
    mask = call["attn_mask"]
    if any(call[name] for name in ("dropout_p", "is_causal", "enable_gqa")):
        return False
    if mask is not None and not mask.meta["val"].is_floating_point():
        return False
    return all(isinstance(size, int) for shape in shapes for size in shape) and len({s[:-2] for s in shapes}) == 1


def _written_out(graph: fx.Graph, node: fx.Node, call: dict[str, Any]) -> fx.Node:
    """What stands for one attention: two products over the heads of all samples, with a softmax between."""
    query, key, value, mask = (call[name] for name in _NAMES[:4])
    leading, n_queries, depth = _split(query)
    n_keys, width = key.meta["val"].shape[-2], value.meta["val"].shape[-1]
    heads = math.prod(leading)
    scale = 1.0 / math.sqrt(depth) if call["scale"] is None else call["scale"]
    with graph.inserting_before(node):
        scaled = _call(graph, _aten.mul.Tensor, _reshaped(graph, query, [heads, n_queries, depth]), scale)
        turned = _call(graph, _aten.transpose.int, _reshaped(graph, key, [heads, n_keys, depth]), 1, 2)
        scores = _call(graph, _aten.bmm.default, scaled, turned)
        if mask is not None:
            masked = _call(graph, _aten.add.Tensor, _reshaped(graph, scores, [*leading, n_queries, n_keys]), mask)
            scores = _reshaped(graph, masked, [heads, n_queries, n_keys])
        weights = _call(graph, _aten.softmax.int, scores, -1)
        mixed = _call(graph, _aten.bmm.default, weights, _reshaped(graph, value, [heads, n_keys, width]))
        return _reshaped(graph, mixed, [*leading, n_queries, width])


def _split(query: fx.Node) -> tuple[list[int], int, int]:
    *leading, n_queries, depth = query.meta["val"].shape
    return leading, n_queries, depth


def _reshaped(graph: fx.Graph, node: fx.Node, shape: list[int]) -> fx.Node:
    return _call(graph, _aten.reshape.default, node, shape)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """A new node with what is known of its value."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
    return node
