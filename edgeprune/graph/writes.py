"""Writes that hide: in-place operators on a view change what is read under another name, behind a reader's back.

In-place operators on whole tensors are harmless to a reader of the graph, and so are writes among constants, which are
computed in the graph's order. The others become functional: a write into slices becomes a scatter.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program
from edgeprune.graph.copies import copied_module
from edgeprune.graph.decompose import decomposed
from edgeprune.graph.memory import Memory, is_in_place, is_view

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
    if not _to_rewrite(program):
        return program
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    to_rewrite = _to_rewrite(changed)
    memory = Memory(changed)
    for node in list(changed.graph.nodes):
        if node in to_rewrite and _scatter_instead(changed.graph, node, memory):
            continue
        if node in to_rewrite and _hides(node, memory):
            changed = decomposed(program, {})
            break
        memory.add(node)
    changed.graph.eliminate_dead_code()
    return changed


def out_of_place(graph: fx.Graph) -> None:
    """Let operators give a new tensor in the place of writing to the one that they take, where no write hides.

    What reads that one later reads the new tensor. Writes to the program's own tensors stay, and those to views, which
    are left among constants.
    """
    for node in graph.nodes:
        form = _functional_form(node) if is_in_place(node) else None
        target = node.args[0] if node.args else None
        if form is None or not isinstance(target, fx.Node) or target.op != "call_function" or is_view(target):
            continue
        for user in _read_later(target, node):
            user.replace_input_with(target, node)
        node.target = form


def _to_rewrite(program: ExportedProgram) -> set[fx.Node]:
    """Every write to memory that some write to hides."""
    memory = Memory(program)
    for node in program.graph.nodes:
        memory.add(node)
    writes = [node for node in program.graph.nodes if is_in_place(node)]
    hidden = {memory.roots[node] for node in writes if _hides(node, memory)}
    return {node for node in writes if memory.roots[node] in hidden}


def _hides(write: fx.Node, memory: Memory) -> bool:
    """Whether an in-place operator changes what is read later under another name than the one that it writes to."""
    target = _target(write)
    if memory.constant.issuperset(write.all_input_nodes):
        return memory.roots[target].op == "placeholder"  # the program's own constant, not a reader's to change
    others = (alias for alias in memory.aliases(target, write) if alias is not target)
    return target in memory.constant or any(_read_later(alias, write) for alias in others)


def _target(write: fx.Node) -> fx.Node:
    """What an in-place operator writes to."""
    target = write.args[0]
    assert isinstance(target, fx.Node)
    return target


def _read_later(node: fx.Node, write: fx.Node) -> list[fx.Node]:
    """What reads a node after the write."""
    return [user for user in node.users if write < user]


def _scatter_instead(graph: fx.Graph, write: fx.Node, memory: Memory) -> bool:
    """Make one write functional; False where it goes through more than slices of a tensor of the graph's own."""
    target = _target(write)
    root = memory.roots[target]
    again = _read_again(target, write, memory)
    if root.op == "placeholder" or _functional_form(write) is None or not _are_plain(target, root, again):
        return False
    with graph.inserting_before(write):
        made = _written(graph, write, root)
        fresh = {root: made[-1]}
        for alias in again:  # views that are read later are taken again
            _taken_again(graph, alias, fresh)
    for alias, node in fresh.items():
        for user in _read_later(alias, write):
            user.replace_input_with(alias, node)
    write.replace_all_uses_with(fresh[target])
    graph.erase_node(write)
    for node in dict.fromkeys([*made, *fresh.values()]):
        memory.add(node)
    return True


def _read_again(target: fx.Node, write: fx.Node, memory: Memory) -> list[fx.Node]:
    """What is written to, and what shows the same memory and is read after the write."""
    return [alias for alias in memory.aliases(target, write) if alias is target or _read_later(alias, write)]


def _are_plain(target: fx.Node, root: fx.Node, again: list[fx.Node]) -> bool:
    """Whether all views between a tensor and what is written to, or read later, are ones that are taken again."""
    return all(view.target in _SCATTER for view in _views(target, root)) and all(
        view.target in _VIEWS for alias in again for view in _views(alias, root)
    )


def _written(graph: fx.Graph, write: fx.Node, root: fx.Node) -> list[fx.Node]:
    """What is written, put into the view it is written to, that into its parent, and so on up to the tensor: last."""
    value = _value_of(graph, write, root)
    made = [] if value in write.args else [value]
    for view in _views(_target(write), root):
        made += _put_into(graph, view, value)
        value = made[-1]
    return made


def _value_of(graph: fx.Graph, write: fx.Node, root: fx.Node) -> fx.Node:
    """What a write leaves in the place that it writes to.

    PyTorch has no gradients for `aten.copy`: what is put into a part of another tensor goes as it is.
    """
    target, source = _target(write), write.args[1] if len(write.args) > 1 else None
    if write.target is _aten.copy_.default and isinstance(source, fx.Node) and target is not root:
        own, given = target.meta["val"], source.meta["val"]
        if own.dtype == given.dtype:
            if [str(size) for size in own.shape] == [str(size) for size in given.shape]:
                return source
            return _called(graph, _aten.expand_as.default, (source, target), {}, own)
    return _called(graph, _functional_form(write), write.args, write.kwargs, write.meta["val"])


def _put_into(graph: fx.Graph, view: fx.Node, value: fx.Node) -> list[fx.Node]:
    """A value in the place of a view of its parent: last. Complex ones as pairs, which PyTorch has gradients for."""
    parent: Any = view.args[0]
    scatter = _SCATTER[view.target]
    whole = parent.meta["val"]
    if not whole.is_complex() or len(view.args) < 2:
        return [_called(graph, scatter, (parent, value, *view.args[1:]), view.kwargs, whole)]
    dim: Any = view.args[1]
    pairs = [
        _called(graph, _aten.view_as_real.default, (part,), {}, torch.view_as_real(part.meta["val"]))
        for part in (parent, value)
    ]
    rest = (dim % whole.dim(), *view.args[2:])
    put = _called(graph, scatter, (*pairs, *rest), view.kwargs, torch.view_as_real(whole))
    return [*pairs, put, _called(graph, _aten.view_as_complex.default, (put,), {}, whole)]


def _called(
    graph: fx.Graph, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], val: torch.Tensor
) -> fx.Node:
    """A new call with what is known of its value."""
    node = graph.call_function(target, args, dict(kwargs))
    node.meta["val"] = val
    return node


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
