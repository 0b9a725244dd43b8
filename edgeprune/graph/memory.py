"""Which nodes of a graph show the same memory, and which are constant."""

from __future__ import annotations

import operator
from collections import defaultdict
from functools import cache
from typing import Any

from torch import fx
from torch.export import ExportedProgram


class Memory:
    """What the nodes that were added so far show, in the order of the graph.

    `roots` gives for a node the one whose memory it shows: views and the results of in-place operators show another's.
    `constant` are the nodes whose values come from constants of the program and factories alone.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._lifted = program.graph_signature.inputs_to_lifted_tensor_constants
        self.constant: set[fx.Node] = set()
        self.roots: dict[fx.Node, fx.Node] = {}
        self._shown: dict[fx.Node, list[fx.Node]] = defaultdict(list)

    def add(self, node: fx.Node) -> None:
        """Take in a node, after those that it reads."""
        shown = node.args[0] if is_view(node) or is_in_place(node) else None
        root = self.roots[shown] if isinstance(shown, fx.Node) else node
        self.roots[node] = root
        self._shown[root].append(node)
        inputs = node.all_input_nodes
        if is_factory(node) or node.name in self._lifted or (inputs and self.constant.issuperset(inputs)):
            self.constant.add(node)

    def aliases(self, node: fx.Node, before: fx.Node) -> list[fx.Node]:
        """The nodes ahead of another one that show the same memory."""
        return [alias for alias in self._shown[self.roots[node]] if alias < before]


def constants(program: ExportedProgram) -> set[fx.Node]:
    """Nodes whose values come from constants of the program and factories alone."""
    memory = Memory(program)
    for node in program.graph.nodes:
        memory.add(node)
    return memory.constant


def is_factory(node: fx.Node) -> bool:
    """Whether the operator makes a tensor from sizes and numbers alone: `zeros`, `full`, `new_zeros`, ..."""
    return node.op == "call_function" and _makes(node.target)


def _functional_schema(target: Any) -> Any:
    """The schema of an operator that writes to none of its arguments, or None."""
    schema = getattr(target, "_schema", None)
    return None if schema is None or schema.is_mutable else schema


@cache
def _makes(target: Any) -> bool:
    schema = _functional_schema(target)
    if schema is None:
        return False
    tensors = [argument.name for argument in schema.arguments if "Tensor" in str(argument.type)]
    return not tensors or (tensors == ["self"] and schema.name.removeprefix("aten::").startswith("new_"))


def is_in_place(node: fx.Node) -> bool:
    """Whether the node is an operator that writes to its first argument."""
    in_place = node.op == "call_function" and _writes(node.target) and bool(node.args)
    return in_place and isinstance(node.args[0], fx.Node)


@cache
def _writes(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_view(node: fx.Node) -> bool:
    """Whether the node shows a part of its first argument's memory."""
    if node.target is operator.getitem:
        container = node.args[0]
        return isinstance(container, fx.Node) and is_view(container)
    return node.op == "call_function" and _shows(node.target)


@cache
def _shows(target: Any) -> bool:
    schema = _functional_schema(target)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
