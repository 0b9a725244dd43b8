"""Recurrent layers: all states of a direction lie in a row, and the next one is computed of the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edgeprune.export.c.graph import Call, Held, View
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.walks import walk_of

_LENGTHS, _H0, _C0, _PEEPHOLES = 4, 5, 6, 7  # places among the inputs
_CELLS = 2  # among the outputs
_DIRECTIONS = {"forward": (0,), "reverse": (1,), "bidirectional": (0, 1)}
_PLAIN = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


@dataclass(frozen=True, slots=True)
class _Layer:
    """Sizes of a layer, and whether each direction goes backwards."""

    steps: int
    batch: int
    n_in: int
    hidden: int
    backwards: tuple[int, ...]

    @property
    def n_state(self) -> int:
        """Numbers of the states of one direction after a step."""
        return self.batch * self.hidden

    @property
    def n_all(self) -> int:
        """Numbers of all states."""
        return self.steps * len(self.backwards) * self.n_state


@rule("LSTM")
def _lstm(low: Lowering, node: onnx.NodeProto) -> None:
    """States and cells are one value, as one step writes both."""
    layer, (w, r, bias) = _layer(low, node), _weights(low, node)
    n_ways = len(layer.backwards)
    halves = bias.reshape(n_ways, 2, -1).sum(1)
    x, out = low.view(node.input[0]), low.made.new((layer.n_all + n_ways * layer.n_state,), "float")
    calls = []
    for way in range(n_ways):
        held = [low.made.hold(one[way], "float") for one in (w, r, halves)]
        cells = View(out.value, (layer.n_state,), "float", layer.n_all + way * layer.n_state)
        calls.append(Call("load_f32", (_start(low, node, _C0, layer, way), cells, str(layer.n_state))))
        h0, states, told = _start(low, node, _H0, layer, way), *_direction(low, layer, way, out)
        calls.append(Call("lstm_f32", (x, *held, h0, states, cells, told)))
    low.made.add(out, *calls)
    _show(low, node, layer, out)
    if len(node.output) > _CELLS and node.output[_CELLS]:
        low.show(node, View(out.value, (), "float", layer.n_all), _CELLS)


@rule("GRU")
def _gru(low: Lowering, node: onnx.NodeProto) -> None:
    if not options(node, linear_before_reset=0)["linear_before_reset"]:
        raise refusal(node, "that resets the state before its product")
    layer, (w, r, bias) = _layer(low, node), _weights(low, node)
    x, out = low.view(node.input[0]), low.made.new((layer.n_all,), "float")
    calls = []
    for way in range(len(layer.backwards)):
        of_input, of_state = np.split(bias[way], 2)
        gates = 2 * layer.hidden
        joined = np.concatenate([of_input[:gates] + of_state[:gates], of_input[gates:], of_state[gates:]])
        held = [low.made.hold(one, "float") for one in (w[way], r[way], joined)]
        calls.append(Call("gru_f32", (x, *held, _start(low, node, _H0, layer, way), *_direction(low, layer, way, out))))
    low.made.add(out, *calls)
    _show(low, node, layer, out)


def _layer(low: Lowering, node: onnx.NodeProto) -> _Layer:
    """Raise InputError for a layer that is none of PyTorch's."""
    low.check_float(node, 1)
    told = options(node, direction="forward", layout=0, input_forget=0, activations=(), clip=None)
    ways = _DIRECTIONS[told["direction"]]
    steps, batch, n_in = low.net.shapes[node.input[0]]
    named = [one.decode() for one in told["activations"]]
    lengths, peepholes = low.constant(node, _LENGTHS), low.constant(node, _PEEPHOLES)
    for is_other, what in (
        (told["layout"] or told["input_forget"] or told["clip"], "a layout, a clip or joined gates"),
        (named not in ([], [*_PLAIN[node.op_type]] * len(ways)), ", ".join(named)),
        (lengths is not None and (lengths != steps).any(), "lengths of samples"),
        (peepholes is not None and peepholes.any(), "peepholes"),
    ):
        if is_other:
            raise refusal(node, f"with {what}")
    return _Layer(steps, batch, n_in, int(told["hidden_size"]), ways)


def _weights(low: Lowering, node: onnx.NodeProto) -> list[np.ndarray]:
    """Those of inputs, those of states and biases, for each direction."""
    w, r, bias = (low.constant(node, place) for place in (1, 2, 3))
    assert w is not None and r is not None
    return [w, r, np.zeros((len(w), 2 * w.shape[1]), np.float32) if bias is None else bias]


def _start(low: Lowering, node: onnx.NodeProto, place: int, layer: _Layer, way: int) -> View | Held:
    """What states or cells of a direction are at first: zeros where nothing is given."""
    name = node.input[place] if len(node.input) > place else ""
    if name and name not in low.net.known:
        whole = low.view(name)
        return View(whole.value, (layer.n_state,), "float", whole.start + way * layer.n_state)
    return low.made.hold(low.known(name)[way] if name else np.zeros(layer.n_state, np.float32), "float")


def _direction(low: Lowering, layer: _Layer, way: int, out: View) -> tuple[View, Held]:
    """Where the states of a direction lie, and its sizes."""
    stride = len(layer.backwards) * layer.n_state
    sizes = layer.steps, layer.batch, layer.n_in, layer.hidden, stride, layer.backwards[way]
    return View(out.value, (layer.n_all,), "float", way * layer.n_state), low.sizes("recurrence", *sizes)


def _show(low: Lowering, node: onnx.NodeProto, layer: _Layer, out: View) -> None:
    """All states, and those of the step that was last in each direction."""
    if node.output[0]:
        low.show(node, View(out.value, (), "float", out.start))
    if len(node.output) < _CELLS or not node.output[1]:
        return
    last, calls = low.result(node, 1), []
    walk = low.sizes("walk", *walk_of(node, (layer.n_state,), [1], [1]))
    for way, is_backwards in enumerate(layer.backwards):
        step = 0 if is_backwards else layer.steps - 1
        start = (step * len(layer.backwards) + way) * layer.n_state
        given = View(out.value, (layer.n_state,), "float", start)
        calls.append(Call("copy_f32", (given, View(last.value, (), "float", way * layer.n_state), walk)))
    low.made.add(last, *calls)
