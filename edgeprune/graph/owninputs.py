"""Networks may write to what they are given (`x -= mean`, an in-place ReLU first): arguments in memory of their own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.graph.memory import is_in_place, is_view

_WRITES_NOTHING = {"placeholder", "get_attr", "output"}
_AS_IT_IS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}  # in eval mode: the very tensor


@torch.no_grad()
def own_arguments(args: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of the arguments: what is written to one tensor is seen in no other, not even in one given twice."""
    return _copied(args)


def spared(network: Callable[..., Any] | fx.Interpreter, args: Sequence[Any]) -> tuple[Any, ...]:
    """What a network is to be called with so that these arguments stay as they are; itself where it only reads them.

    A copy takes the gradient along. A module that is no graph is not looked into: it gets copies.
    """
    return _copied(args) if _may_write(network) else tuple(args)


def _copied(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tree_map_only(Tensor, Tensor.clone, arg) for arg in args)


def _may_write(network: Callable[..., Any] | fx.Interpreter) -> bool:
    module = network.module if isinstance(network, fx.Interpreter) else network
    return not isinstance(module, fx.GraphModule) or bool(written_inputs(module.graph))


def written_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The placeholders of a graph that it writes to, also by what shows a part of one."""
    writes = [node for node in graph.nodes if _written(node)]
    if not writes:
        return set()
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        shown = node.args[0] if is_view(node) or is_in_place(node) or _hands_on(node) else None
        roots[node] = roots[shown] if isinstance(shown, fx.Node) else node
    found = {roots[target] for node in writes for target in _written(node)}
    return {root for root in found if root.op == "placeholder"}


def _written(node: fx.Node) -> list[fx.Node]:
    """What a node writes to, as far as its schema tells; all that it takes where it has none."""
    if binding.schema_of(node) is not None or node.op in _WRITES_NOTHING or node.target is operator.getitem:
        return binding.mutated(node)
    return node.all_input_nodes


def _hands_on(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) in _AS_IT_IS
