"""The layers of a network whose time is measured: what they compute, and the units along their widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.graph.call import Call
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.labels import Value, core
from edgeprune.graph.ops.contraction import is_transposed
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.sizes import input_values, size_hint

Setting = int | str | tuple[int, ...]
ONE_WIDTH = ("depthwise", "grouped", "attention", "pointwise")  # kinds whose inputs and outputs become fewer together
_MAX_WEIGHTS = 2**27  # of one layer: half a gigabyte
RECURRENT = {"lstm": 4, "gru": 3}  # gates of the layers that are one operator in a file
POINTWISE = ("add", "elu", "gelu", "hardsigmoid", "hardswish", "layer_norm", "mul", "sigmoid", "silu", "tanh")


@dataclass(frozen=True, slots=True, eq=False)
class LayerShape:
    """What a layer computes for one sample, but for its weights.

    `kind` is "convolution", "depthwise", "grouped", "linear", "recurrent", "attention" or "pointwise"; `settings` holds
    what else its time depends on: `kernel`, `stride`, `pads` (before and after), `dilation` and `size` (of the input)
    of a convolution, `group_in` and `group_out` (channels of one group) of a grouped one, `rows` of a linear layer,
    `op`, `steps` and `directions` of a recurrent one, whose width is the hidden units of one direction, `windows`,
    `tokens`, `keys`, `dim` and `value_dim` of an attention, whose width is its number of heads, `op` and `size`
    (positions) of one that works on each number by itself, or on all channels of a position ("pointwise").
    Inputs and outputs of a convolution with groups, an attention and a pointwise layer become fewer together:
    `in_labels` is None. Labels are those of the channels, `(width_in,)` and `(width_out,)`; where both are None, the
    time goes with the MACs.
    """

    kind: str
    settings: dict[str, Setting]
    width_in: int
    width_out: int
    in_labels: np.ndarray | None = field(default=None, repr=False)
    out_labels: np.ndarray | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """One line that is the same for layers that differ in their widths alone, e.g. "linear rows 1"."""
        return f"{self.kind} " + ", ".join(f"{name} {_text(value)}" for name, value in self.settings.items())

    @property
    def has_one_width(self) -> bool:
        """Whether inputs and outputs become fewer together."""
        return self.kind in ONE_WIDTH

    @property
    def n_weights(self) -> int:
        """How many weights it has."""
        if self.kind in ("attention", "pointwise"):
            return 0
        if self.kind == "recurrent":
            rows = RECURRENT[str(self.settings["op"])] * self.width_out * int(str(self.settings["directions"]))
            return rows * (self.width_in + self.width_out)
        kernel = self.settings.get("kernel", ())
        n_taps = math.prod(kernel) if isinstance(kernel, tuple) else 1
        return n_taps * self.width_out * (self.width_in // self.groups(self.width_in))

    @property
    def is_measured(self) -> bool:
        """Whether a device's profile holds such a layer; of one of very many weights the MACs stand for it."""
        return self.n_weights <= _MAX_WEIGHTS

    def groups(self, width_in: int) -> int:
        """The groups of a convolution when it has so many input channels."""
        if self.kind == "depthwise":
            return width_in
        group_in = self.settings.get("group_in")
        return width_in // group_in if isinstance(group_in, int) else 1


def layer_shapes(graph: ChannelGraph) -> dict[str, LayerShape]:
    """The layers of a network, by the name of their node; what is none of the kinds is left out."""
    batch = next((size_hint(v.shape[0]) for v in input_values(graph.analysis.program) if v.dim()), 1)
    found = {}
    for node, call in graph.analysis.calls.items():
        make = _maker(call)
        shape = make(call, batch) if make is not None else None
        if shape is not None:
            found[node.name] = shape
    return found


def _convolution(call: Call, batch: int) -> LayerShape | None:
    x, weight, groups = call["input"], call["weight"], call.get("groups", 1)
    spatial = len(weight.shape) - 2
    if len(x.shape) != spatial + 2 or is_transposed(call):
        return None
    kernel, dilation = weight.shape[2:], _each(call.get("dilation", 1), spatial)
    settings: dict[str, Setting] = {
        "kernel": tuple(kernel),
        "stride": _each(call.get("stride", 1), spatial),
        "pads": _pads(call.get("padding", 0), kernel, dilation),
        "dilation": dilation,
        "size": tuple(x.shape[2:]),
    }
    if groups == 1:
        return LayerShape("convolution", settings, x.shape[1], weight.shape[0], _along(weight, 1), _along(weight, 0))
    if groups == x.shape[1] == weight.shape[0]:
        return LayerShape("depthwise", settings, groups, groups)
    settings |= {"group_in": weight.shape[1], "group_out": weight.shape[0] // groups}
    return LayerShape("grouped", settings, x.shape[1], weight.shape[0])


def _linear(call: Call, batch: int) -> LayerShape | None:
    x, weight = call["input"], call["weight"]
    if len(weight.shape) != 2:
        return None
    rows = max(1, math.prod(x.shape[:-1]) // batch)
    return LayerShape("linear", {"rows": rows}, weight.shape[1], weight.shape[0], _along(weight, 1), _along(weight, 0))


def _recurrent(call: Call, batch: int) -> LayerShape | None:
    """A recurrent layer over all steps; packed sequences and projections are no operator of a file's."""
    if call.name not in RECURRENT or "input" not in call.args or call["num_layers"] != 1:
        return None
    x, (ih, hh, *_) = call["input"], call["params"]
    hidden = ih.shape[0] // RECURRENT[call.name]
    if hh.shape[1] != hidden:
        return None
    settings: dict[str, Setting] = {
        "op": call.name,
        "steps": x.shape[1 if call["batch_first"] else 0],
        "directions": 2 if call["bidirectional"] else 1,
    }
    # Every gate has the same units.
    return LayerShape("recurrent", settings, ih.shape[1], hidden, _along(ih, 1), _along(ih, 0)[:hidden])


def _pointwise(call: Call, batch: int) -> LayerShape | None:
    """Activations, sums and norms; what runtimes fuse into the layer before (ReLU, batch norm) is not among them."""
    x = max(call.values, key=lambda value: math.prod(value.shape))
    for layer in x.layers:
        if len(layer.dims) == 1 and layer.dims[0] > 0 and not layer.pending:
            width = x.shape[layer.dims[0]]
            settings: dict[str, Setting] = {"op": call.name, "size": max(1, math.prod(x.shape) // (batch * width))}
            return LayerShape("pointwise", settings, width, width, None, core(layer).numpy())
    return None


def _attention(call: Call, batch: int) -> LayerShape | None:
    q, k, v = call["query"], call["key"], call["value"]
    if len(q.shape) < 4 or q.shape[-3] != k.shape[-3]:
        return None
    heads = q.shape[-3]
    settings: dict[str, Setting] = {
        "windows": max(1, math.prod(q.shape[:-3]) // batch),
        "tokens": q.shape[-2],
        "keys": k.shape[-2],
        "dim": q.shape[-1],
        "value_dim": v.shape[-1],
    }
    return LayerShape("attention", settings, heads, heads)


def _maker(call: Call) -> Callable[[Call, int], LayerShape | None] | None:
    """What describes a call, or None where its time goes with the MACs alone."""
    return _pointwise if call.name in POINTWISE else _MAKERS.get(kind_of(call.operator))


_MAKERS: dict[Kind | None, Callable[[Call, int], LayerShape | None]] = {
    Kind.CONVOLUTION: _convolution,
    Kind.LINEAR: _linear,
    Kind.ATTENTION: _attention,
    Kind.RECURRENT: _recurrent,
}


def _along(value: Value, dim: int) -> np.ndarray:
    """The labels along one dim, `(size,)`; 0 where they vary with another dim too."""
    for layer in value.layers:
        if layer.dims == (dim,) and not layer.pending:
            return core(layer).numpy()
    return np.zeros(value.shape[dim], dtype=np.int64)


def _pads(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Zeros before each spatial dim, then those after."""
    if padding == "valid":
        return (0,) * 2 * len(kernel)
    if padding == "same":
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return (*(total // 2 for total in whole), *(total - total // 2 for total in whole))
    return _each(padding, len(kernel)) * 2


def _each(value: Any, n: int) -> tuple[int, ...]:
    """One number for each spatial dim, as PyTorch reads `stride=2` or `stride=(2, 1)`."""
    values = (value,) if isinstance(value, int | Tensor) else tuple(value)
    return tuple(int(v) for v in (values * n if len(values) == 1 else values))


def _text(value: Setting) -> str:
    return "x".join(str(v) for v in (value if isinstance(value, tuple) else (value,)))
