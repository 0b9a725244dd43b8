"""One layer as an ONNX file without weights, so that a runtime can be asked how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cost.device import STEPS
from edgeprune.cost.layers import RECURRENT, LayerShape, Setting

_OPSET, _IR = 20, 9
_WEIGHT = 0.01
_SHARES = (0.25, 0.5, 0.75)  # of a width: where it is measured beside its whole
_REFERENCE_WIDTHS = tuple(range(4, 100, 4))


@dataclass(frozen=True, slots=True)
class Probe:
    """A layer at some widths: `shape.key` names it; `width_in` and `width_out` are those of the probe itself."""

    shape: LayerShape
    width_in: int
    width_out: int
    batch: int = 1

    def model(self) -> bytes:
        """The ONNX file; its weights are made by the runtime itself while it loads it, so that it is small."""
        return _MAKERS.get(self.shape.kind, _convolution)(self).SerializeToString(deterministic=True)

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input."""
        s = self.shape.settings
        if self.shape.kind == "linear":
            return {"x": (self.batch * _one(s["rows"]), self.width_in)}
        if self.shape.kind == "recurrent":
            return {"x": (_one(s["steps"]), self.batch, self.width_in)}
        if self.shape.kind == "pointwise":
            return dict.fromkeys(("x", "z")[: 1 + (s["op"] in _SUMS)], (self.batch, _one(s["size"]), self.width_in))
        if self.shape.kind == "attention":
            lead = (self.batch * _one(s["windows"]), self.width_in)
            sizes = {"q": ("tokens", "dim"), "k": ("keys", "dim"), "v": ("keys", "value_dim")}
            return {name: (*lead, *(_one(s[size]) for size in dims)) for name, dims in sizes.items()}
        return {"x": (self.batch, self.width_in, *_many(s["size"]))}


def probes_of(shapes: Sequence[LayerShape], batch: int = 1) -> list[Probe]:
    """What to measure for these layers: each distinct one at its own widths, and at some shares of each width.

    Layers of more than 2^27 weights are left out: their MACs stand for them.
    """
    distinct = {(shape.key, shape.width_in, shape.width_out): shape for shape in shapes if shape.is_measured}
    return [Probe(shape, *widths, batch) for shape in distinct.values() for widths in _widths(shape)]


def reference_probes(shapes: Sequence[LayerShape], batch: int = 1) -> list[Probe]:
    """One small layer of each kind that there is, at many widths: where a device has its stairs."""
    found = []
    for kind in dict.fromkeys(shape.kind for shape in shapes):
        shape = _REFERENCES.get(kind)
        if shape is not None:
            one = shape.has_one_width
            found += [Probe(shape, width if one else shape.width_in, width, batch) for width in _REFERENCE_WIDTHS]
    return found


def _conv_settings(kernel: int, size: int) -> dict[str, Setting]:
    half = kernel // 2
    return {
        "kernel": (kernel, kernel), "stride": (1, 1), "pads": (half,) * 4, "dilation": (1, 1), "size": (size, size),
    }  # fmt: skip


_NO_LABELS = np.zeros(0, dtype=np.int64)
_REFERENCES = {
    "convolution": LayerShape("convolution", _conv_settings(1, 28), 64, 96, _NO_LABELS, _NO_LABELS),
    "depthwise": LayerShape("depthwise", _conv_settings(3, 28), 96, 96),
    "linear": LayerShape("linear", {"rows": 196}, 192, 96, _NO_LABELS, _NO_LABELS),
    "recurrent": LayerShape("recurrent", {"op": "lstm", "steps": 16, "directions": 1}, 64, 96, _NO_LABELS, _NO_LABELS),
}


def _widths(shape: LayerShape) -> Iterator[tuple[int, int]]:
    """The pairs of widths at which a layer is measured, its own first."""
    full_in, full_out = shape.width_in, shape.width_out
    yield full_in, full_out
    if shape.has_one_width:
        per_group = [shape.settings.get(name, 1) for name in ("group_in", "group_out")]
        group_in, group_out = (_one(size) for size in per_group)
        for width in _some(full_out, group_out):
            yield width // group_out * group_in, width
        return
    for width in _some(full_out):
        yield full_in, width
    for width in _some(full_in):
        yield width, full_out


def _some(full: int, unit: int = 1) -> list[int]:
    """A few widths below the whole: the least that a kernel works on at a time, and shares on the coarsest stair."""
    step = next((s for s in STEPS if s * 4 <= full), 1)
    step = -(-step // unit) * unit
    chosen = {max(step, round(full * share / step) * step) for share in _SHARES} | {step}
    return sorted(width for width in chosen if 0 < width < full)


# -- the graphs ----------------------------------------------------------------------------------------------------


def _convolution(probe: Probe) -> onnx.ModelProto:
    s, groups = probe.shape.settings, probe.shape.groups(probe.width_in)
    weight = (probe.width_out, probe.width_in // groups, *_many(s["kernel"]))
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], name="layer", group=groups, strides=_many(s["stride"]), pads=_many(s["pads"]),
        dilations=_many(s["dilation"]), kernel_shape=_many(s["kernel"]),
    )  # fmt: skip
    return _model(probe, {"w": weight}, [node])


def _linear(probe: Probe) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return _model(probe, {"w": (probe.width_in, probe.width_out)}, [node])


def _recurrent(probe: Probe) -> onnx.ModelProto:
    s, op, hidden = probe.shape.settings, str(probe.shape.settings["op"]), probe.width_out
    directions = _one(s["directions"])
    told: dict[str, Any] = {"hidden_size": hidden, "direction": ("forward", "bidirectional")[directions - 1]}
    if op == "gru":
        told["linear_before_reset"] = 1  # as in PyTorch
    node = helper.make_node(op.upper(), ["x", "w", "r"], ["y"], name="layer", **told)
    rows = RECURRENT[op] * hidden
    return _model(probe, {"w": (directions, rows, probe.width_in), "r": (directions, rows, hidden)}, [node])


def _attention(probe: Probe) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    return _model(probe, {}, nodes)


_SUMS = {"add": "Add", "mul": "Mul"}
_UNARY = {
    "elu": "Elu", "gelu": "Gelu", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish", "sigmoid": "Sigmoid",
    "tanh": "Tanh",
}  # fmt: skip


def _pointwise(probe: Probe) -> onnx.ModelProto:
    op = str(probe.shape.settings["op"])
    if op in _SUMS:
        nodes = [helper.make_node(_SUMS[op], ["x", "z"], ["y"])]
    elif op == "silu":
        nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    elif op == "layer_norm":
        return _model(probe, {"w": (probe.width_in,)}, [helper.make_node("LayerNormalization", ["x", "w", "w"], ["y"])])
    else:
        nodes = [helper.make_node(_UNARY[op], ["x"], ["y"])]
    return _model(probe, {}, nodes)


_MAKERS = {"linear": _linear, "recurrent": _recurrent, "attention": _attention, "pointwise": _pointwise}


def _model(probe: Probe, weights: Mapping[str, tuple[int, ...]], nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The graph around a layer; runtimes fold the constant weights before they choose a kernel."""
    constants = []
    for name, shape in weights.items():
        constants.append(numpy_helper.from_array(np.asarray(shape, dtype=np.int64), f"{name}_shape"))
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [_WEIGHT])
        nodes = [helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value), *nodes]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in probe.inputs().items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "probe", inputs, [output], constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="edgeprune"
    )


def _one(value: Setting) -> int:
    assert isinstance(value, int)
    return value


def _many(value: Setting) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    return value
