"""Copies of graphs whose nodes keep their names.

fx gives a copied node another name where Python knows the old one, such as `input` or `max`, and a program's signature
has its inputs and outputs by their names.
"""

from __future__ import annotations

import copy

from torch import fx


def copied_graph(graph: fx.Graph) -> fx.Graph:
    """A deep copy of a graph, its nodes by their own names."""
    return _with_names(graph, copy.deepcopy(graph))


def copied_module(module: fx.GraphModule) -> fx.GraphModule:
    """A deep copy of a graph's module, its nodes by their own names."""
    made = copy.deepcopy(module)
    _with_names(module.graph, made.graph)
    return made


def _with_names(graph: fx.Graph, made: fx.Graph) -> fx.Graph:
    for old, new in zip(graph.nodes, made.nodes, strict=True):
        if new.name != old.name:
            new.name = old.name
            made._graph_namespace._rename_object(new, old.name)
    return made
