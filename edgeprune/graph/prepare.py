"""What an analysis reads: the program without hidden writes, with hand-written channel shuffles as one operator.

Operators that have no rule are replaced by those that they are made of, and recurrent layers get a call each.

Between the views of a shuffle the channels lie in a grid, which would have to lose whole rows or columns; seen as one
operator it only reorders them, and every channel can go by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph import binding
from edgeprune.graph.capture import Program
from edgeprune.graph.copies import copied_module
from edgeprune.graph.known import with_known_operators
from edgeprune.graph.labels import pack, reshape_labels, shuffle_groups, spread
from edgeprune.graph.sizes import size_hint
from edgeprune.graph.unstack import with_single_layers
from edgeprune.graph.writes import functional

_aten = torch.ops.aten
_VIEWS = {
    _aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.unflatten.int,
    _aten.flatten.using_ints,
}  # fmt: skip
_SWAPS = {_aten.transpose.int, _aten.permute.default}
_SAME = {_aten.contiguous.default, _aten.clone.default}


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What was made of a program, and what the program held then."""

    ready: ExportedProgram
    graph: fx.Graph
    n_nodes: int
    tensors: Mapping[str, Any]

    def is_of(self, program: ExportedProgram) -> bool:
        """Whether the program has the same graph and the same tensors, whose numbers both share."""
        tensors = _tensors(program)
        is_same = self.graph is program.graph and self.n_nodes == len(program.graph.nodes)
        return is_same and tensors.keys() == self.tensors.keys() and all(tensors[k] is self.tensors[k] for k in tensors)


_known: WeakKeyDictionary[ExportedProgram, _Prepared] = WeakKeyDictionary()  # analysis, folding and proof each ask


def prepared(program: ExportedProgram) -> ExportedProgram:
    """The program as it is analysed, cut and masked; computes the same, and may be the same object."""
    known = _known.get(program)
    if known is not None and known.is_of(program):
        return known.ready
    ready = with_single_layers(with_shuffles(with_known_operators(without_dead_nodes(functional(program)))))
    held = _tensors(program)
    # An entry that held its own key would stay for ever, and one with copies of tensors would not see them change.
    if ready is not program and {id(t) for t in _tensors(ready).values()} <= {id(t) for t in held.values()}:
        _known[program] = _Prepared(ready, program.graph, len(program.graph.nodes), held)
    return ready


def _tensors(program: ExportedProgram) -> dict[str, Any]:
    return {**program.constants, **program.state_dict}


def without_dead_nodes(program: ExportedProgram) -> ExportedProgram:
    """The program without what nothing reads (attention weights, say); the same object where everything is read."""
    alive: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.op != "call_function" or node.is_impure() or not alive.isdisjoint(node.users):
            alive.add(node)
    if all(node in alive or node.target is operator.getitem for node in program.graph.nodes):
        return program  # a part of a result that is not read locks nothing
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    changed.graph.eliminate_dead_code()
    return changed


def with_shuffles(program: ExportedProgram) -> ExportedProgram:
    """The program with every hand-written channel shuffle as `aten.channel_shuffle`; the same object without any."""
    if not any(_shuffle_at(node) for node in program.graph.nodes):
        return program
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    graph = changed.graph
    for node in list(graph.nodes):
        found = _shuffle_at(node)
        if found is None:
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(_shuffle(graph, *found, node.meta))
    graph.eliminate_dead_code()
    return changed


def _shuffle(graph: fx.Graph, start: fx.Node, groups: int, meta: dict[str, Any]) -> fx.Node:
    """The call that shuffles; the operator wants a position behind the channels, which `(batch, channels)` lacks."""

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta = {**meta, "val": target(args[0].meta["val"], *args[1:])}
        return node

    if len(_shape(start)) > 2:
        return call(_aten.channel_shuffle.default, start, groups)
    shuffled = call(_aten.channel_shuffle.default, call(_aten.unsqueeze.default, start, -1), groups)
    return call(_aten.squeeze.dim, shuffled, -1)


def _shuffle_at(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The value that is shuffled and the number of groups, where `node` is the last view of a shuffle."""
    chain = _swapped_views(node)
    start = chain[0].args[0] if len(chain) > 2 else None
    if not isinstance(start, fx.Node):
        return None
    shape = _shape(start)
    if len(shape) < 2 or shape != _shape(node):
        return None
    orders = [_order(chain, shape, dim) for dim in range(len(shape))]
    order = orders.pop(1)
    groups = None if order is None else shuffle_groups(order)
    others_stay = all(order is not None and order == sorted(order) for order in orders)
    return (start, groups) if groups is not None and others_stay else None


def _swapped_views(node: fx.Node) -> list[fx.Node]:
    """The nodes from a view over swaps of dims to the view `node`; none where something else reads one between them."""
    chain = [node] if node.target in _VIEWS else []
    while chain and isinstance(before := chain[0].args[0], fx.Node) and before.target in _SWAPS | _SAME | _VIEWS:
        if len(before.users) > 1:
            return []
        chain.insert(0, before)
        if before.target in _VIEWS:
            break
    return chain


def _shape(node: fx.Node) -> tuple[int, ...]:
    return binding.shape_of(node.meta["val"])


def _order(chain: list[fx.Node], shape: tuple[int, ...], dim: int) -> list[int] | None:
    """The indices along `dim` in the order that the chain leaves them in, or None where they leave their dim."""
    labels = spread(torch.arange(shape[dim]), (dim,), shape)
    for node in chain:
        labels = _moved(node, labels)
    layer = pack(labels, zero=False)
    if layer.dims not in ((dim,), ()):
        return None
    order: list[int] = layer.labels.movedim(dim, 0).reshape(shape[dim], -1)[:, 0].tolist()
    return order


def _moved(node: fx.Node, labels: Tensor) -> Tensor:
    if node.target in _SAME:
        return labels
    if node.target in _VIEWS:
        return reshape_labels(labels, _shape(node))
    arguments: Any = torch.utils._pytree.tree_map(size_hint, node.args[1:])
    return labels.transpose(*arguments) if node.target is _aten.transpose.int else labels.permute(*arguments)
