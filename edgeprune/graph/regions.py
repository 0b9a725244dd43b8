"""Regions under `torch.no_grad` or `torch.autocast`, which an export keeps as graphs of their own, as plain nodes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.errors import CaptureError

_grad_mode = torch.ops.higher_order.wrap_with_set_grad_enabled
_autocast = torch.ops.higher_order.wrap_with_autocast


def flattened(program: ExportedProgram) -> ExportedProgram:
    """Put the nodes of every region into the graph itself, in place; detached where they carry no gradients.

    Raises:
        CaptureError: a region casts to another type as it runs.
    """
    graph, module = program.graph_module.graph, program.graph_module
    while regions := [node for node in graph.nodes if node.target in (_grad_mode, _autocast)]:
        for node in regions:
            _flatten(program, node)
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name, child in list(module.named_children()):
        if isinstance(child, fx.GraphModule) and name not in used:
            delattr(module, name)
    module.recompile()
    return program


def _flatten(program: ExportedProgram, node: fx.Node) -> None:
    graph = program.graph_module.graph
    body, operands = _parts(node)
    region = getattr(program.graph_module, str(body.target))
    results = _copied(graph, region.graph, node, operands)
    if node.target is _grad_mode and node.args[0] is False:
        results = [_detached(graph, node, result) for result in results]
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise AssertionError(f"{user.name} takes the whole of region {node.name}")
        result = results[int(user.args[1])]  # type: ignore[arg-type]
        program.graph_signature.replace_all_uses(user.name, result.name)
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)


def _parts(node: fx.Node) -> tuple[fx.Node, tuple[Any, ...]]:
    """The node that holds a region's graph, and what goes in."""
    if node.target is _grad_mode:
        return node.args[1], node.args[2:]  # type: ignore[return-value]
    device, dtype, enabled = node.args[:3]
    if enabled and device == "cpu":
        raise CaptureError(f"a part of the model runs under torch.autocast to {dtype}: expected one float type")
    return node.args[4], node.args[5:]  # type: ignore[return-value]


def _copied(graph: fx.Graph, region: fx.Graph, before: fx.Node, operands: tuple[Any, ...]) -> list[fx.Node]:
    """A region's nodes, copied into the graph ahead of a node; returns what the region returns."""
    placeholders = [node for node in region.nodes if node.op == "placeholder"]
    copies: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    results: Any = ()
    with graph.inserting_before(before):
        for node in region.nodes:
            if node.op == "output":
                results = fx.node.map_arg(node.args[0], copies.__getitem__)
            elif node.op == "get_attr":
                owner = graph.owning_module
                assert owner is not None
                name = f"{before.name}_{node.target}"
                owner.add_submodule(name, getattr(region.owning_module, str(node.target)))
                copies[node] = graph.get_attr(name)
            elif node.op != "placeholder":
                copies[node] = graph.node_copy(node, copies.__getitem__)
    return list(results)


def _detached(graph: fx.Graph, before: fx.Node, result: fx.Node) -> fx.Node:
    with graph.inserting_before(before):
        detached = graph.call_function(torch.ops.aten.detach.default, (result,))
    detached.meta = dict(result.meta)
    return detached


__all__ = ["flattened"]
