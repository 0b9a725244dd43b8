"""Recurrent layers, as PyTorch's own of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.registry import rule

# PyTorch's order of the gates, by their places in ONNX: i, o, f, c and z, r, h.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_PLAIN = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


@rule("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> tuple[Tensor, ...]:
    """All steps `(length, n_directions, batch, n_hidden)`, and the last state of each direction."""
    _check(call)
    first = bool(call.attribute("layout", 0))
    x = call.tensor(0).transpose(0, 1) if first else call.tensor(0)
    direction = call.text("direction", "forward")
    x = x.flip(0) if direction == "reverse" else x
    n_directions, hidden = (2 if direction == "bidirectional" else 1), int(call.attribute("hidden_size"))
    states = [_state(call, position, x, n_directions, hidden, first) for position in _states(call)]
    weights = [weight for which in range(n_directions) for weight in _weights(call, which, n_directions)]
    steps, *last = _run(call, x, states, weights, n_directions == 2)
    steps = steps.flip(0) if direction == "reverse" else steps
    steps = steps.reshape(*steps.shape[:2], n_directions, hidden)
    if first:
        return steps.transpose(0, 1), *(state.transpose(0, 1) for state in last)
    return steps.transpose(1, 2), *last


def _states(call: Call) -> tuple[int, ...]:
    return (5, 6) if call.node.op == "LSTM" else (5,)


def _check(call: Call) -> None:
    """Raise InputError for the kinds that PyTorch has no operator for."""
    n_directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    activations = [str(name).lower() for name in call.attribute("activations", [])]
    known = [_PLAIN[call.node.op] * n_directions] + ([["relu"] * n_directions] if call.node.op == "RNN" else [])
    call.refuse_if(bool(activations) and activations not in known, "the usual activations", activations)
    call.refuse_if(call.attribute("clip") is not None, "no clip", call.attribute("clip"))
    call.refuse_if(call.node.op == "LSTM" and call.has(7), "no peepholes", "some")
    call.refuse_if(bool(call.attribute("input_forget", 0)), "input_forget 0", 1)
    plain = call.node.op != "GRU" or bool(call.attribute("linear_before_reset", 0))
    call.refuse_if(not plain, "linear_before_reset 1, as PyTorch's GRU is", 0)
    if call.has(4) and call.constant(4) is None:
        raise InputError("expected sequences of one length, got sequence_lens that come in")


def _state(call: Call, position: int, x: Tensor, n_directions: int, hidden: int, first: bool) -> Tensor:
    """The first state `(n_directions, batch, n_hidden)`; zeros where none is given."""
    constant = call.constant(position) if call.has(position) else None
    if not call.has(position) or (
        constant is not None and not call.weights.numbers(call.node.inputs[position]).values.any()
    ):
        return x.new_zeros(n_directions, x.shape[1], hidden)
    state = call.operand(position, "state")
    state = state.transpose(0, 1) if first else state
    return state.expand(n_directions, x.shape[1], hidden).contiguous()


def _weights(call: Call, which: int, n_directions: int) -> list[Tensor]:
    """A direction's weights and biases in PyTorch's order of the gates."""
    gates, suffix = _GATES[call.node.op], "_reverse" if which else ""

    def of(tensor: Tensor) -> Tensor:
        parts = tensor[which].chunk(len(gates))
        return torch.cat([parts[gate] for gate in gates])

    def bias(tensor: Tensor, half: int) -> Tensor:
        parts = tensor[which].chunk(2)[half].chunk(len(gates))
        return torch.cat([parts[gate] for gate in gates])

    weights = [_made(call, k, f"weight_{kind}_l0{suffix}", of) for k, kind in ((1, "ih"), (2, "hh"))]
    if call.has(3):
        for half, kind in enumerate(("ih", "hh")):
            weights.append(_made(call, 3, f"bias_{kind}_l0{suffix}", lambda tensor, half=half: bias(tensor, half)))
    return weights


def _made(call: Call, position: int, role: str, make: object) -> Tensor:
    call.refuse_if(call.constant(position) is None, "constant weights", "computed ones")
    constant = call.constant(position)
    assert constant is not None and callable(make)
    layer = call.node.name.strip("/").rpartition("/")[0].replace("/", ".") or call.node.name or call.node.op.lower()
    key = call.node.inputs[position]
    made: Tensor = call.weights.held(key, role, lambda: make(constant), True, f"{layer}.{role}")
    return made


def _run(call: Call, x: Tensor, states: list[Tensor], weights: list[Tensor], both: bool) -> tuple[Tensor, ...]:
    has_bias = len(weights) in (4, 8)
    shared = (weights, has_bias, 1, 0.0, False, both, False)
    if call.node.op == "LSTM":
        return torch.lstm(x, states, *shared)
    if call.node.op == "GRU":
        return torch.gru(x, states[0], *shared)
    activations = [str(name).lower() for name in call.attribute("activations", ["tanh"])]
    operator = torch.rnn_relu if activations[0] == "relu" else torch.rnn_tanh
    return operator(x, states[0], *shared)
