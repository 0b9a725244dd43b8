"""Recurrent calls of several layers as one call for each layer, so that every layer has a width of its own.

In one call all layers share their hidden size: a unit would have to go from all of them at once.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program
from edgeprune.graph.copies import copied_module
from edgeprune.graph.sizes import same_sizes

_aten = torch.ops.aten
STACKS = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}


def with_single_layers(program: ExportedProgram) -> ExportedProgram:
    """The program with a call for each recurrent layer; the same object where there is nothing to do."""
    if not any(_depth(node) > 1 for node in program.graph.nodes):
        return program
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    for node in list(changed.graph.nodes):
        if _depth(node) > 1:
            _unstack(changed.graph, node)
    changed.graph.eliminate_dead_code()
    return changed


def _depth(node: fx.Node) -> int:
    """How many layers a recurrent call has; 0 for other nodes."""
    return _Stack.of(node).n_layers if node.target in STACKS else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """A recurrent call's arguments; `states` has one entry, or two for an LSTM."""

    node: fx.Node
    states: tuple[fx.Node, ...]
    weights: tuple[fx.Node, ...]
    has_biases: bool
    n_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @classmethod
    def of(cls, node: fx.Node) -> _Stack:
        """From `(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)`."""
        _, states, weights, *options = (*node.args, *node.kwargs.values())
        states = tuple(states) if isinstance(states, (list, tuple)) else (states,)
        return cls(node, states, tuple(weights), *options)  # type: ignore[arg-type]

    @property
    def n_directions(self) -> int:
        """1, or 2 where the input is read backwards too."""
        return 2 if self.bidirectional else 1


def _unstack(graph: fx.Graph, node: fx.Node) -> None:
    """Replace one call by a chain of them, with the dropout between layers as nodes of their own."""
    stack = _Stack.of(node)
    n_weights = len(stack.weights) // stack.n_layers
    finals: list[list[fx.Node]] = []  # each layer's last hidden (and cell) states
    value: Any = node.args[0]
    target: Any = node.target
    with graph.inserting_before(node):
        for layer in range(stack.n_layers):
            states = [_layer_state(graph, stack, state, layer) for state in stack.states]
            weights = list(stack.weights[layer * n_weights : (layer + 1) * n_weights])
            hx = states if len(states) > 1 else states[0]
            options = (stack.has_biases, 1, 0.0, stack.train, stack.bidirectional, stack.batch_first)
            call = graph.call_function(target, (value, hx, weights, *options))
            outputs, *last = node.meta["val"]
            call.meta = {**node.meta, "val": (outputs, *(part.narrow(0, 0, stack.n_directions) for part in last))}
            value, *final = (_part(graph, call, index) for index in range(1 + len(last)))
            finals.append(final)
            if stack.dropout and layer < stack.n_layers - 1:
                value = _made(graph, value, _aten.dropout.default, (value, stack.dropout, stack.train))
    for part in list(node.users):
        index: Any = part.args[1]
        if index == 0:
            part.replace_all_uses_with(value)
        else:
            _rewire_states(graph, part, [final[index - 1] for final in finals], stack.n_directions)
        graph.erase_node(part)
    graph.erase_node(node)


def _part(graph: fx.Graph, call: fx.Node, index: int) -> fx.Node:
    part = graph.call_function(operator.getitem, (call, index))
    part.meta = {**call.meta, "val": call.meta["val"][index]}
    return part


def _made(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...], val: Any = None) -> fx.Node:
    """A new node whose result has the shape of `like`, unless `val` tells otherwise."""
    node = graph.call_function(target, args)
    node.meta = {**like.meta, "val": like.meta["val"] if val is None else val}
    return node


def _layer_state(graph: fx.Graph, stack: _Stack, state: fx.Node, layer: int) -> fx.Node:
    """The initial state of one layer; zeros are made anew, so that each layer has its own."""
    n, start = stack.n_directions, layer * stack.n_directions
    val = state.meta["val"].narrow(0, start, n)
    parts: Any = state.args[0] if state.args else ()
    along_first = state.args[1:] in ((), (0,))
    if state.target is _aten.zeros.default:
        zeros = _made(graph, state, _aten.zeros.default, ([n, *parts[1:]],), val)
        zeros.kwargs = state.kwargs
        return zeros
    if state.target is _aten.cat.default and len(parts) == stack.n_layers and along_first:
        if all(same_sizes(part.meta["val"].shape, val.shape) for part in parts):
            joined: fx.Node = parts[layer]
            return joined
    if state.target is _aten.stack.default and n == 1 and along_first:
        return _made(graph, state, _aten.unsqueeze.default, (parts[layer], 0), val)
    return _made(graph, state, _aten.slice.Tensor, (state, 0, start, start + n), val)


def _rewire_states(graph: fx.Graph, stacked: fx.Node, layers: list[fx.Node], n_directions: int) -> None:
    """What reads the last states of all layers reads those of the layers that it is about."""
    for user in list(stacked.users):
        wanted = _layers_read(user, len(layers), n_directions)
        if wanted is None:
            continue
        with graph.inserting_before(user):
            part = _joined(graph, [layers[layer] for layer in wanted])
        if user.target is _aten.select.int:
            index: Any = user.args[2]
            user.args = (part, 0, index % n_directions)
        else:
            user.replace_all_uses_with(part)
    with graph.inserting_before(stacked):
        stacked.replace_all_uses_with(_joined(graph, layers))


def _layers_read(user: fx.Node, n_layers: int, n_directions: int) -> list[int] | None:
    """The layers that a select or slice of the stacked states takes whole; None for other readers."""
    rows = range(n_layers * n_directions)
    if user.target is _aten.select.int and user.args[1] == 0:
        return [rows[user.args[2]] // n_directions]  # type: ignore[index]
    if user.target is not _aten.slice.Tensor or (user.args[1:2] or (0,)) != (0,):
        return None
    bounds: Any = user.args[2:]
    taken = rows[slice(*bounds)]
    if taken.step != 1 or not taken or taken.start % n_directions or len(taken) % n_directions:
        return None
    return [row // n_directions for row in taken[::n_directions]]


def _joined(graph: fx.Graph, parts: list[fx.Node]) -> fx.Node:
    if len(parts) == 1:
        return parts[0]
    return _made(graph, parts[0], _aten.cat.default, (parts, 0), torch.cat([part.meta["val"] for part in parts]))
