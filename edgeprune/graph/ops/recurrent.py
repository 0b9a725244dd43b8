"""Recurrent layers and cells: a hidden unit is one row of every gate, one column of the next step, one state.

A removed unit stays at zero: all its gates' rows and biases are zero, so that its candidate is tanh(0) = 0, and what is
left of its state is a share of the initial one. Stacks of layers are taken apart before (`graph/unstack.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgeprune.errors import PlanError
from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, contract, unify
from edgeprune.graph.labels import Layer, Value, not_zero, pack, spread
from edgeprune.graph.ops.contraction import reshaped
from edgeprune.graph.ops.movement import lock_all
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting

_N_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_STEP = ("n", "g", "h")  # batch, gate, hidden unit


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """One direction's weights: rows are gates x hidden units; `hr` projects the hidden units, `(projected, hidden)`."""

    ih: Value
    hh: Value
    biases: tuple[Value, ...]
    hr: Value | None

    @classmethod
    def of(cls, flat: Sequence[Value], has_biases: bool) -> _Weights:
        """From `(w_ih, w_hh[, b_ih, b_hh][, w_hr])`."""
        end = 4 if has_biases else 2
        return cls(flat[0], flat[1], tuple(flat[2:end]), flat[end] if len(flat) > end else None)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """What a step (or all of them) leaves: `output` `(batch, hidden or projected)`, `cell` `(batch, hidden)`."""

    output: Value
    cell: Value


def _by_gate(value: Value, n_gates: int) -> Value:
    """`(gates * hidden, ...)` -> `(gates, hidden, ...)`."""
    return reshaped(value, (n_gates, value.shape[0] // n_gates, *value.shape[1:]))


def _step(
    analysis: Labelling, name: str, x: Operand, states: Sequence[Value], weights: _Weights, share: float = 1.0
) -> _State:
    """One direction's units after any number of steps; `share` of the call's cost is this direction's.

    `x` has the letters "i" for its features, "n" for the batch, and "t" for time if there is any; `states` are the
    initial ones, `(batch, size)`: hidden, and for an LSTM the cell's.
    """
    n_gates = _N_GATES[name]
    hidden = weights.ih.shape[0] // n_gates
    n, shape = states[0].shape[0], (states[0].shape[0], n_gates, hidden)
    ih = Operand(_by_gate(weights.ih, n_gates), ("g", "h", "i"))
    hh = Operand(_by_gate(weights.hh, n_gates), ("g", "h", "p"))
    # Later states need not read zero where the first one does: the columns must.
    previous = states[0] if "t" not in x.letters else not_zero(states[0])
    for operand in (x, *(Operand(state, ("n", "p")) for state in states)):
        operand.fix(analysis, "n", reasons.ALL_POSITIONS)
    sums = [
        Operand(contract(analysis, [x, ih], _STEP, shape, fixed=("g", "t")), _STEP),
        Operand(contract(analysis, [Operand(previous, ("n", "p")), hh], _STEP, shape, fixed=("g",)), _STEP),
        *(Operand(_by_gate(bias, n_gates), ("g", "h")) for bias in weights.biases),
    ]
    for operand in sums:
        operand.fix(analysis, "g", reasons.NOT_FOLLOWED)
    own = [Operand(state, ("n", "h")) for state in _unprojected(states, weights)]
    unify(analysis, [*sums, *own])
    _count(analysis, (x, ih, hh), weights.hr, share)
    left = [] if name.startswith("rnn") else own[-1:]  # what is left of the last state
    zero = all(operand.reads_zero(("h",)) for operand in (*sums, *left))
    layers = [pack(layer.labels[:, 0], zero) for layer in sums[0].value.layers if 2 in layer.dims]
    cell = Value((n, hidden), tuple(layers))
    return _State(cell if weights.hr is None else _projected(analysis, cell, weights.hr, states[0]), cell)


def _unprojected(states: Sequence[Value], weights: _Weights) -> Sequence[Value]:
    """The states that have the hidden units: all but the first, where that is projected."""
    return states if weights.hr is None else states[1:]


def _projected(analysis: Labelling, cell: Value, hr: Value, before: Value) -> Value:
    """The output of a layer that projects its hidden units, `(batch, projected)`, which has the units of the state."""
    projection = [Operand(cell, ("n", "h")), Operand(hr, ("p", "h"))]
    output = contract(analysis, projection, ("n", "p"), (cell.shape[0], hr.shape[0]))
    unify(analysis, [Operand(output, ("n", "p")), Operand(before, ("n", "p"))])
    return output


def _count(analysis: Labelling, factors: tuple[Operand, Operand, Operand], hr: Value | None, share: float) -> None:
    """Shares of the cost: gates x hidden x (features + previous), and hidden x projected."""
    x, ih, hh = factors
    n_gates, hidden, features = ih.value.shape
    previous = hh.value.shape[2]
    projected = hidden * hr.shape[0] if hr is not None else 0
    total = (n_gates * hidden * (features + previous) + projected) / share
    inner = [layer for operand in (x, ih) for layer in operand.on("i")][:1]
    before = hh.on("p")[:1]
    units = [layer for layer in ih.on("h") if ih.over(layer) == ("h",)][:1]
    analysis.add_term(n_gates * hidden * features / total, [*units, *inner])
    analysis.add_term(n_gates * hidden * previous / total, [*units, *before])
    if projected:
        analysis.add_term(projected / total, [*units, *before])


def _check_projection(edit: Rewriting, call: Call) -> None:
    """PyTorch tells a projection by a hidden state that is narrower than the cell's."""
    if call.name != "lstm" or len(call["params"]) % (5 if call["has_biases"] else 3):
        return
    hidden, cell = (edit.kept_size(state, 2) for state in call["hx"])
    if hidden == cell and call["hx"][0].shape != call["hx"][1].shape:
        raise PlanError(
            f"the plan leaves {hidden} projected and {cell} hidden units of {call.node.name}: "
            f"expected different numbers, or PyTorch takes the LSTM for one without a projection"
        )


@operator("lstm", "gru", "rnn_tanh", "rnn_relu", kind=Kind.RECURRENT, rewrite=_check_projection)
def recurrent(analysis: Labelling, call: Call) -> Any:
    """One layer, one or two directions, `hx` `(directions, batch, size)`; both directions have the same units."""
    if "input" not in call.args or call["num_layers"] != 1:
        return lock_all(analysis, call, reasons.PACKED)
    x = Operand(call["input"], ("n", "t", "i") if call["batch_first"] else ("t", "n", "i"))
    found = _directions(analysis, call, x)
    outputs, cells = [state.output for state in found], [state.cell for state in found]
    for same in (outputs, cells):
        unify(analysis, [Operand(value, ("n", "h")) for value in same])
    results = [_laid_out(analysis, outputs, call.shape[0], len(found)), _laid_out(analysis, outputs, call.shape[1])]
    return results + [_laid_out(analysis, cells, shape) for shape in call.shape[2:]]


def _directions(analysis: Labelling, call: Call, x: Operand) -> list[_State]:
    """What each direction leaves."""
    states = _initial(call)
    n_directions = 2 if call["bidirectional"] else 1
    for state in states:
        for layer in state.layers:
            analysis.fix(layer, 0, reasons.DIRECTIONS)
    n_weights = len(call["params"]) // n_directions
    found = []
    for k in range(n_directions):
        weights = _Weights.of(call["params"][k * n_weights : (k + 1) * n_weights], call["has_biases"])
        own = [_direction(state, k) for state in states]
        found.append(_step(analysis, call.name, x, own, weights, 1 / n_directions))
    return found


def _initial(call: Call) -> list[Value]:
    """The states before the first step: hidden, and for an LSTM the cell's."""
    return list(call["hx"]) if isinstance(call["hx"], (list, tuple)) else [call["hx"]]


def _direction(state: Value, index: int) -> Value:
    """`(directions, batch, size)` -> `(batch, size)`."""
    parts = (pack(layer.labels[index], layer.zero) for layer in state.layers)
    return Value(state.shape[1:], tuple(layer for layer in parts if layer.dims))


def _laid_out(analysis: Labelling, values: Sequence[Value], shape: tuple[int, ...], times: int = 1) -> Value:
    """The units of `values`, one for each direction and all with the same, along the last dim of a result."""
    layers = []
    for position, layer in enumerate(values[0].layers):
        zero = all(len(value.layers) > position and value.layers[position].zero for value in values)
        vector = torch.cat([layer.labels[0]] * times)
        layers.append(Layer(spread(vector, (len(shape) - 1,), shape), zero))
    return analysis.value(shape, layers)


@operator("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", kind=Kind.RECURRENT)
def cell(analysis: Labelling, call: Call) -> Any:
    """A single step; the states of the step before have the same units."""
    states = _initial(call)
    biases = tuple(value for name in ("b_ih", "b_hh") if isinstance(value := call.get(name), Value))
    weights = _Weights(call["w_ih"], call["w_hh"], biases, None)
    x = Operand(call["input"], ("n", "i"))
    state = _step(analysis, call.name.removesuffix("_cell"), x, states, weights)
    return [state.output, state.cell] if len(states) > 1 else state.output
