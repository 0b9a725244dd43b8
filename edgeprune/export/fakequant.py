"""A quantised file as a network that can be trained: its weights in float, rounded each time as the file has them.

It is built of the file's own graph, so that what is rounded is what the file rounds: batch norm is folded, activations
that clip are ranges, and each QuantizeLinear is a rounding through which gradients pass (straight-through estimator,
https://arxiv.org/abs/1308.3432). The scales of activations are learnt (https://arxiv.org/abs/1902.08153), as factors
on those that were calibrated; those of weights follow the weights, as the quantising tools set them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.export.exact import dequantized
from edgeprune.formats.onnxin.call import Call, Value
from edgeprune.formats.onnxin.network import OnnxNetwork
from edgeprune.formats.onnxin.nodes import Input, Node, graph_of
from edgeprune.tasks.outputs import mapped

_STORED = "_quantized"  # after the names of weights, in the tools' files
_SCALE = "_scale"
_TRAINED = "edgeprune.trained/"  # before the names of weights that come in from outside of the graph
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_BITS_7, _BITS_8 = 64, 127  # the largest integer that stands for a weight

Rounding = Callable[[Tensor], Tensor]
Ranges = Mapping[str, tuple[float, float]]


class OnnxModule(nn.Module):
    """A file's network in PyTorch, with outputs as the program gives them; it trains nothing.

    Args:
        proto: a file whose batch is free.
        structure: of the outputs, see `answers.structure_of`.
        outside: weights that are handed in at each run behind the inputs, in place of the file's.

    Raises:
        InputError: an operator that cannot be taken, by name.
    """

    def __init__(self, proto: onnx.ModelProto, structure: Any, outside: tuple[Input, ...] = ()) -> None:
        super().__init__()
        graph = graph_of(proto)
        self.inputs = graph.inputs
        self.network = _Rounding(replace(graph, inputs=(*graph.inputs, *outside)))
        self.structure = structure

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for the file's inputs `(n, ...)`, in order or by name."""
        return self._answered(inputs, named, ())

    def settle(self, feed: Mapping[str, np.ndarray]) -> None:
        """Take what the graph holds of its own, which is not trained, by running once."""
        with torch.no_grad():
            self(*(torch.from_numpy(array) for array in feed.values()))
        self.network.sealed = True
        self.network.requires_grad_(False)

    def _answered(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor], weights: Sequence[Tensor]) -> Any:
        given = [named[place.name] for place in self.inputs] if named else inputs
        taken = [tensor.to(place.dtype) for place, tensor in zip(self.inputs, given, strict=True)]
        found = self.network.run([*taken, *weights])
        if self.structure is None or isinstance(self.structure, str):
            return found
        by_name = found if isinstance(found, dict) else {self.network.graph.outputs[0]: found}
        return mapped(self.structure, lambda name: by_name[name])


class FakeQuantized(OnnxModule):
    """The network of a quantised file, to be trained.

    Args:
        quantized: static QDQ, as the tools write it.
        floats: the file that it was made of, whose weights are trained.
        structure: of the outputs, see `answers.structure_of`.
        reduced: whether its weights have 7 bits.

    Raises:
        InputError: an operator that cannot be taken, by name, or nothing to train.
    """

    def __init__(self, quantized: onnx.ModelProto, floats: onnx.ModelProto, structure: Any, reduced: bool) -> None:
        found = _unrounded(quantized, floats)
        names = tuple(found.weights)
        shapes = {name: tuple(found.weights[name].shape) for name in names}
        super().__init__(
            found.proto, structure, tuple(Input(f"{_TRAINED}{name}", torch.float32, shapes[name]) for name in names)
        )
        self.names = names
        self.weights = nn.ParameterList(nn.Parameter(torch.from_numpy(found.weights[name])) for name in self.names)
        self.scales = nn.ModuleDict()
        self._places = {name: f"scale_{k}" for k, name in enumerate({grid.scale: 0 for grid in found.grids.values()})}
        for grid in found.grids.values():
            self.scales[self._places[grid.scale]] = _Scale(grid)
        self.network.roundings = self._roundings(found, _BITS_7 if reduced else _BITS_8)

    def _roundings(self, found: _Unrounded, most: int) -> dict[str, Rounding]:
        """By the value that is a rounded one."""
        weights = {name: _WeightRounding(axis, most) for name, axis in found.axes.items()}
        made: dict[str, Rounding] = {name: self._scale(grid.scale) for name, grid in found.grids.items()}
        for name, (scale, value, weight) in found.biases.items():
            made[name] = _BiasRounding(self._scale(scale), self.weights, self.names.index(weight), weights[value])
        return {**made, **weights}

    def _scale(self, name: str) -> _Scale:
        return self.scales[self._places[name]]  # type: ignore[return-value]

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs that the quantised file means, for its inputs `(n, ...)`, in order or by name."""
        return self._answered(inputs, named, tuple(self.weights))

    def trained(self) -> dict[str, np.ndarray]:
        """The weights in float, by their names in the file that the quantised one was made of."""
        return {name: weight.detach().numpy() for name, weight in zip(self.names, self.weights, strict=True)}

    def ranges(self) -> Ranges:
        """What the activations' integers reach from and to, by the name of the tensor."""
        return {name.removesuffix(_SCALE): self._scale(name).range() for name in self._places}


# -- rounding ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grid:
    """The numbers that the integers `low` to `high` stand for; several tensors may have one `scale`, by its name."""

    scale: str
    step: float
    zero: int
    low: int
    high: int


class _Scale(nn.Module):
    """Rounds activations to a grid whose scale is learnt; a factor, so that a step changes all alike."""

    def __init__(self, grid: _Grid) -> None:
        super().__init__()
        self.grid = grid
        self.log_factor = nn.Parameter(torch.zeros(()))

    def step(self) -> Tensor:
        """What one integer more stands for."""
        return self.grid.step * self.log_factor.exp()

    def forward(self, x: Tensor) -> Tensor:
        """`x` `(...)` as its integers mean it."""
        grid = self.grid
        rounded: Tensor = _OnGrid.apply(x, self.step(), grid.low - grid.zero, grid.high - grid.zero)
        return rounded

    def range(self) -> tuple[float, float]:
        """The least and the largest number."""
        step = float(self.step().detach())
        return (self.grid.low - self.grid.zero) * step, (self.grid.high - self.grid.zero) * step


class _OnGrid(torch.autograd.Function):
    """Rounding to multiples `low` to `high` of a step; gradients pass where nothing is cut off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        ratio = x / step
        whole = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, whole)
        return whole * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        ratio, whole = ctx.saved_tensors
        inside = (ratio - whole).abs() <= 0.5  # else it was cut off
        passed = grad * inside
        step = (grad * whole).sum() - (passed * ratio).sum()
        return passed, step, None, None


@dataclass(frozen=True, slots=True)
class _WeightRounding:
    """Rounds weights to symmetric integers up to `most`, with a scale for each channel along `axis`, or one for all."""

    axis: int | None
    most: int

    def scale(self, weight: Tensor) -> Tensor:
        """What one integer more stands for, `(n_channels,)` or `()`."""
        flat = weight.detach().abs()
        largest = flat.max() if self.axis is None else flat.transpose(0, self.axis).flatten(1).amax(dim=1)
        return torch.where(largest > 0, largest / self.most, torch.ones_like(largest))

    def __call__(self, weight: Tensor) -> Tensor:
        """`weight` `(...)` as its integers mean it."""
        scale = self.scale(weight)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, float(scale), 0, -self.most, self.most)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, self.axis, -self.most, self.most)


@dataclass(frozen=True, slots=True, eq=False)
class _BiasRounding:
    """Rounds a bias as it is added to sums of integers: to the product of the scales of activations and weights."""

    activations: _Scale
    weights: nn.ParameterList
    place: int
    rounding: _WeightRounding

    def __call__(self, bias: Tensor) -> Tensor:
        """`bias` `(n_channels,)` as its integers mean it."""
        scale = self.activations.step().detach() * self.rounding.scale(self.weights[self.place])
        return bias + ((bias / scale).round() * scale - bias).detach()


class _Rounding(OnnxNetwork):
    """A graph some of whose values are rounded, by their names."""

    roundings: Mapping[str, Rounding] = {}

    def _results(self, node: Node, call: Call) -> tuple[Value, ...]:
        found = super()._results(node, call)
        rounding = self.roundings.get(node.outputs[0])
        if rounding is None or not isinstance(found[0], Tensor):
            return found
        return (rounding(found[0]),)


# -- the graph -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Unrounded:
    """A quantised file's graph with numbers in the place of integers.

    `grids` are those of activations by the value that is rounded to them, `axes` the channels of weights by the value
    that is their rounded one; `biases` say by theirs which scale of activations, value and name of weights theirs is
    the product of. `weights` are the float ones that are trained, biases among them, by name.
    """

    proto: onnx.ModelProto
    grids: Mapping[str, _Grid]
    axes: Mapping[str, int | None]
    biases: Mapping[str, tuple[str, str, str]]
    weights: Mapping[str, np.ndarray]


def _unrounded(quantized: onnx.ModelProto, floats: onnx.ModelProto) -> _Unrounded:
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    sources = {tensor.name: tensor for tensor in floats.graph.initializer}
    conversions = [node for node in quantized.graph.node if node.op_type in _CONVERSIONS]
    trained = {node.output[0]: node for node in conversions if _is_trained(node, stored, sources)}
    names = {value: node.input[0].removesuffix(_STORED) for value, node in trained.items()}
    axes = _axes(trained, stored)
    return _Unrounded(
        _without_integers(quantized, stored, names),
        _grids(conversions, stored),
        axes,
        _biases(quantized.graph, conversions, names, axes),
        {name: np.array(numpy_helper.to_array(sources[name])) for name in dict.fromkeys(names.values())},
    )


def _axes(trained: Mapping[str, onnx.NodeProto], stored: Mapping[str, onnx.TensorProto]) -> dict[str, int | None]:
    """Those of weights, which are int8, by their value; raises InputError where there are none."""
    weights = {value: node for value, node in trained.items() if stored[node.input[0]].data_type == TensorProto.INT8}
    if not weights:
        raise InputError("expected int8 weights to finetune, got none")
    return {value: _axis(node, stored) for value, node in weights.items()}


def _without_integers(
    quantized: onnx.ModelProto, stored: Mapping[str, onnx.TensorProto], names: Mapping[str, str]
) -> onnx.ModelProto:
    """The file with identities in the place of conversions; `names` are those of trained weights, by their value."""
    made = copy.deepcopy(quantized)
    nodes: list[onnx.NodeProto] = []
    for node in quantized.graph.node:
        if node.op_type not in _CONVERSIONS:
            nodes.append(node)
            continue
        value = node.output[0]
        source = f"{_TRAINED}{names[value]}" if value in names else node.input[0]
        if source in stored:  # what no training changes
            source = f"{value}/held"
            made.graph.initializer.append(numpy_helper.from_array(dequantized(node, stored), source))
        nodes.append(helper.make_node("Identity", [source], [value], f"{value}/identity"))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _biases(
    graph: onnx.GraphProto, conversions: Sequence[onnx.NodeProto], names: Mapping[str, str], axes: Mapping[str, Any]
) -> dict[str, tuple[str, str, str]]:
    """By the value of a bias, of which scale and weights its integers are."""
    scales = {node.output[0]: node.input[1] for node in conversions}
    found = {}
    for node in graph.node:
        if len(node.input) > 2 and node.input[2] in names and node.input[1] in axes and node.input[0] in scales:
            found[node.input[2]] = scales[node.input[0]], node.input[1], names[node.input[1]]
    return found


def _is_trained(
    node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto], sources: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether it reads the integers of a weight or a bias, which are of their own types."""
    tensor = stored.get(node.input[0])
    if tensor is None or tensor.data_type not in (TensorProto.INT8, TensorProto.INT32):
        return False
    return tensor.name.endswith(_STORED) and tensor.name.removesuffix(_STORED) in sources


def _grids(conversions: Sequence[onnx.NodeProto], stored: Mapping[str, onnx.TensorProto]) -> dict[str, _Grid]:
    return {node.output[0]: _grid(node, stored) for node in conversions if node.op_type == "QuantizeLinear"}


def _grid(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> _Grid:
    value, scale, zero = node.input
    if value in stored or not {scale, zero} <= set(stored) or numpy_helper.to_array(stored[scale]).size != 1:
        raise InputError(f"{node.output[0]}: expected an activation with one scale, got another")
    point = numpy_helper.to_array(stored[zero])
    bounds = np.iinfo(point.dtype)
    return _Grid(scale, numpy_helper.to_array(stored[scale]).item(), point.item(), bounds.min, bounds.max)


def _axis(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> int | None:
    """Along which a weight's scales go; None where there is one for all."""
    if numpy_helper.to_array(stored[node.input[1]]).ndim == 0:
        return None
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
    return int(axis % len(stored[node.input[0]].dims))
