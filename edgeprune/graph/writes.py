"""Writes that hide: in-place operators on a view change what is read under another name, behind a reader's back.

In-place operators on whole tensors are harmless to a reader of the graph, and so are writes among constants, which are
computed in the graph's order. The others become functional: a write into slices becomes a scatter.
"""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program

_aten = torch.ops.aten
_SCATTER: dict[Any, Any] = {
    _aten.slice.Tensor: _aten.slice_scatter.default,
    _aten.select.int: _aten.select_scatter.default,
}
# Operators that never copy, unlike `reshape`.
_VIEWS = {
    *_SCATTER, _aten.view.default, _aten.permute.default, _aten.transpose.int, _aten.unsqueeze.default,
    _aten.squeeze.dim, _aten.expand.default, _aten.detach.default, _aten.unbind.int, _aten.split.Tensor,
    _aten.split_with_sizes.default, _aten.chunk.default, operator.getitem,
}  # fmt: skip


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without writes that hide; the same object where there are none."""
    if _first_hidden_write(program) is None:
        return program
    changed = Program.adopt(program)
    changed._graph_module = copy.deepcopy(program.graph_module)
    while (found := _first_hidden_write(changed)) is not None:
        if not _scatter_instead(changed.graph, found):
            changed = with_batch_norm(Program.adopt(program.run_decompositions({})))
            break
    changed.graph.eliminate_dead_code()
    return changed


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """An in-place operator, where every node stands in the graph, and whose memory it shows."""

    node: fx.Node
    order: dict[fx.Node, int]
    roots: dict[fx.Node, fx.Node]
    shown: dict[fx.Node, list[fx.Node]]  # root -> the nodes that show its memory

    @property
    def target(self) -> fx.Node:
        """What the operator writes to."""
        target = self.node.args[0]
        assert isinstance(target, fx.Node)
        return target

    def aliases(self) -> list[fx.Node]:
        """Nodes before the operator that show the same memory."""
        same = self.shown[self.roots[self.target]]
        return [alias for alias in same if self.order[alias] < self.order[self.node]]

    def later(self, alias: fx.Node) -> list[fx.Node]:
        """What reads a node after the operator."""
        return [user for user in alias.users if self.order.get(user, -1) > self.order[self.node]]


def _first_hidden_write(program: ExportedProgram) -> _Write | None:
    """The first write of all to a tensor that some write to hides; what comes before it are views alone."""
    constant = constants(program)
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    roots = _roots(program.graph)
    shown: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node, root in roots.items():
        shown[root].append(node)
    writes = [_Write(node, order, roots, shown) for node in order if _is_in_place(node)]
    hidden = next((write for write in writes if _hides(write, constant)), None)
    return hidden and next(write for write in writes if roots[write.target] is roots[hidden.target])


def _hides(write: _Write, constant: set[fx.Node]) -> bool:
    """Whether the operator changes what is read later under another name than the one that it writes to."""
    if constant.issuperset(write.node.all_input_nodes):
        return write.roots[write.target].op == "placeholder"  # the program's own constant, not a reader's to change
    return write.target in constant or any(write.later(a) for a in write.aliases() if a is not write.target)


def _scatter_instead(graph: fx.Graph, write: _Write) -> bool:
    """Make one write functional; False where it goes through more than slices of a tensor of the graph's own."""
    target, root = write.target, write.roots[write.target]
    new_operator = _functional_form(write.node)
    aliases = write.aliases()
    again = [alias for alias in aliases if alias is target or write.later(alias)]
    plain = all(view.target in _SCATTER for view in _views(target, root)) and all(
        view.target in _VIEWS for alias in again for view in _views(alias, root)
    )
    if new_operator is None or not plain or root.op == "placeholder":
        return False
    with graph.inserting_before(write.node):
        value = graph.call_function(new_operator, write.node.args, write.node.kwargs)
        value.meta = dict(write.node.meta)
        view = target
        while view is not root:  # put the new part into its parent, and that into its own
            parent: Any = view.args[0]
            value = graph.call_function(_SCATTER[view.target], (parent, value, *view.args[1:]), view.kwargs)
            value.meta = dict(parent.meta)
            view = parent
        fresh = {root: value}
        for alias in again:  # views that are read later are taken again
            _taken_again(graph, alias, fresh)
    for alias, node in fresh.items():
        for user in write.later(alias):
            user.replace_input_with(alias, node)
    write.node.replace_all_uses_with(fresh[target])
    graph.erase_node(write.node)
    return True


def _views(node: fx.Node, root: fx.Node) -> list[fx.Node]:
    """The views that lead from a node back to the tensor that it shows."""
    found = []
    while node is not root:
        found.append(node)
        parent: Any = node.args[0]
        node = parent
    return found


def _taken_again(graph: fx.Graph, view: fx.Node, fresh: dict[fx.Node, fx.Node]) -> fx.Node:
    """A view as it is after the write, with the views that it is taken of."""
    if view not in fresh:
        parent: Any = view.args[0]
        _taken_again(graph, parent, fresh)
        fresh[view] = graph.node_copy(view, lambda node: fresh.get(node, node))
    return fresh[view]


def _functional_form(node: fx.Node) -> Any:
    """`aten.mul_.Tensor` -> `aten.mul.Tensor`, or None."""
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(_aten, name, None), target._overloadname, None)


def with_batch_norm(program: Program) -> Program:
    """Turn the inference form of batch norm, which decomposition leaves, back into the one that can be trained."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            whole = graph.call_function(
                torch.ops.aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
            )
        whole.meta = {**node.meta, "val": node.meta["val"][0]}
        for part in list(node.users):
            if part.args[1] != 0:
                raise AssertionError(f"{part.name}: nothing reads the statistics of an inference batch norm")
            part.replace_all_uses_with(whole)
            graph.erase_node(part)
        graph.erase_node(node)
    return program


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


def constants(program: ExportedProgram) -> set[fx.Node]:
    """Nodes whose values come from constants of the program and factories alone."""
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if is_factory(node) or node.name in lifted or (node.all_input_nodes and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _roots(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Every node -> the node whose memory it shows: views and the results of in-place operators show another's."""
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        shown = node.args[0] if _is_view(node) or _is_in_place(node) else None
        roots[node] = roots[shown] if isinstance(shown, fx.Node) else node
    return roots


def _is_in_place(node: fx.Node) -> bool:
    in_place = node.op == "call_function" and _writes(node.target) and bool(node.args)
    return in_place and isinstance(node.args[0], fx.Node)


@cache
def _writes(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        container = node.args[0]
        return isinstance(container, fx.Node) and _is_view(container)
    return node.op == "call_function" and _shows(node.target)


@cache
def _shows(target: Any) -> bool:
    schema = _functional_schema(target)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
