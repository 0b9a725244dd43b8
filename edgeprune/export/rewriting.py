"""Operators that are written otherwise for an exporter: what they give stays the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.copies import copied_module


def with_replaced(
    program: ExportedProgram, is_meant: Callable[[fx.Node], bool], made: Callable[[fx.Graph, fx.Node], fx.Node]
) -> ExportedProgram:
    """The program with other nodes for those that are meant; the same object without any.

    Args:
        program: left as it is.
        is_meant: of a node, whether it is replaced.
        made: adds what stands for a node to the graph, ahead of it, and returns what gives its result.
    """
    if not any(map(is_meant, program.graph.nodes)):
        return program
    changed = copy.copy(program)
    changed._graph_module = copied_module(program.graph_module)
    changed._graph_signature = copy.deepcopy(program.graph_signature)
    for node in list(filter(is_meant, changed.graph.nodes)):
        with changed.graph.inserting_before(node):
            result = made(changed.graph, node)
        node.replace_all_uses_with(result)
        changed.graph_signature.replace_all_uses(node.name, result.name)
        changed.graph.erase_node(node)
    changed.graph_module.recompile()
    return changed


def called(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node with what is known of its value."""
    node = graph.call_function(target, args, kwargs)
    values, options = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
    node.meta["val"] = target(*values, **options)
    return node
