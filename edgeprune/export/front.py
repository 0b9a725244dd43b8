"""The front of a network: the nodes that make its input of raw data, as a file of their own or folded into it.

The order is always gather, cast, subtract, divide: bytes that nobody needs are neither converted nor scaled.

    raw (batch, 3, 224, 224) uint8 -> Cast -> Sub -> Div -> the network's float input

Scaling is not folded into the weights of a first convolution: its zero padding stands for normalised zeros, which
are other raw values than 0, so the border pixels would come out wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.export import ExportedProgram

from edgeprune.data import normalize
from edgeprune.data.inputs import size_along, spread_shape
from edgeprune.errors import InputError
from edgeprune.graph.drawn import drawn_input
from edgeprune.records import IDENTITY, InputFeatures, Normalization

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_WHOLE = 1e-2  # of a byte's step: what float32 loses on `byte / 255` is far below, another scale is far above


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a network expects to be done to raw inputs of `shape` (without the batch).

    `byte_scale` times a byte is a raw value, e.g. 1/255 where images are read as 0 to 1; None where raw values are no
    bytes, as in a table: they stay floats then.
    """

    shape: tuple[int, ...]
    normalization: Normalization | None = None
    features: InputFeatures | None = None
    byte_scale: float | None = None

    @property
    def scales(self) -> bool:
        """Whether anything is done to the numbers."""
        return self.byte_scale is not None or not is_identity(self.normalization)

    def check(self) -> None:
        """Raise InputError where the numbers cannot be used on inputs of this shape."""
        if self.byte_scale is not None and not (np.isfinite(self.byte_scale) and self.byte_scale > 0):
            raise InputError(f"byte scale: expected a number above 0, e.g. 1/255, got {self.byte_scale}")
        if self.normalization is None:
            return
        width = size_along(self.normalization.dim, self.shape)
        for name, values in (("mean", self.normalization.mean), ("std", self.normalization.std)):
            if len(values) not in (1, width):
                raise InputError(f"normalisation: expected 1 or {width} values of {name}, got {len(values)}")
        if not all(value > 0 for value in self.normalization.std):
            raise InputError(f"normalisation: expected every std above 0, got {self.normalization.std}")

    def check_foldable(self) -> None:
        """Raise InputError where nothing would be folded."""
        if not self.scales:
            raise InputError(
                "--preprocess fold: the model takes its inputs as they are and its data are no bytes, so there is "
                "nothing to fold; leave the option out"
            )


def numbers_of(normalization: Normalization) -> dict[str, Any]:
    """Mean and std as files state them, and `dim` where these go along another than dim 1."""
    numbers: dict[str, Any] = {"mean": list(map(float, normalization.mean)), "std": list(map(float, normalization.std))}
    return numbers if normalization.dim == 1 else {**numbers, "dim": normalization.dim}


def is_identity(normalization: Normalization | None) -> bool:
    """Whether it leaves every number as it is; None stands for that too."""
    return normalization is None or not (any(normalization.mean) or any(value != 1.0 for value in normalization.std))


# --- the same in numpy


def spread_numbers(normalization: Normalization, n_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std in float64, of the shape that meets a batch of `n_dims` dims: `(1, n, 1, 1)` along dim 1 of 4."""
    mean, std = (
        np.asarray(values, np.float64).reshape(spread_shape(len(values), normalization.dim, n_dims))
        for values in (normalization.mean, normalization.std)
    )
    return mean, std


def denormalized(drawn: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """The raw inputs `(n, ...)` that are normalised to these; of their type, or wider."""
    if normalization is None:
        return drawn
    mean, std = spread_numbers(normalization, drawn.ndim)
    return np.asarray(drawn * std + mean)


def normalized(raw: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """Raw inputs `(n, ...)` as `data.normalize` makes them; as they are where that changes nothing."""
    if normalization is None or is_identity(normalization):
        return raw
    return normalize(torch.from_numpy(raw), normalization).numpy()


def drawn_raw(
    program: ExportedProgram,
    count: int,
    sizes: Sequence[int],
    normalization: Normalization | None,
    byte_scale: float | None = None,
) -> np.ndarray:
    """Raw inputs `(count, *sizes)` that are as drawn for the program once they are normalised; bytes times a scale."""
    drawn = drawn_input(program, count, sizes)
    raw = denormalized(drawn, normalization)
    if byte_scale is not None:
        raw = np.clip(np.rint(raw / byte_scale), 0, 255) * byte_scale
    return raw.astype(drawn.dtype)


def kept(inputs: np.ndarray, features: InputFeatures) -> np.ndarray:
    """The slim input: the whole one with `k` along the features' dim, `(n, k)` for those of the flattened input."""
    source = inputs if features.dim is not None else inputs.reshape(len(inputs), -1)
    return np.ascontiguousarray(source.take(features.keep, axis=features.dim or 1))


def raw_bytes(raw: np.ndarray, byte_scale: float) -> np.ndarray:
    """The uint8 that raw inputs `(n, ...)` were read from, e.g. 0.2 to 51 for a scale of 1/255.

    Raises:
        InputError: they are not a byte times the scale.
    """
    steps = raw.astype(np.float64) / byte_scale
    whole = np.rint(steps)
    wrong = ~((np.abs(steps - whole) <= _WHOLE) & (whole >= 0) & (whole <= 255))
    if wrong.any():
        raise InputError(
            f"raw inputs: expected bytes times {byte_scale:.6g}, which are 0 to {255 * byte_scale:.6g}, got "
            f"{raw[wrong][0]:.6g}: the scale is another, or the data are no bytes and the front takes floats"
        )
    return whole.astype(np.uint8)


def feature_scaling(preprocessing: Preprocessing) -> Normalization:
    """What is done to the kept features, along a dim of the slim input: one mean and std for each of its indices.

    Where all features are kept, or are counted along another dim than mean and std, that is the normalisation's own.
    """
    normalization, features = preprocessing.normalization or IDENTITY, preprocessing.features
    dim, keep = normalization.dim, None if features is None else np.asarray(features.keep)
    if features is not None and features.dim is not None and normalization.count == 1:
        dim = features.dim
    width = size_along(dim, preprocessing.shape)
    mean, std = (np.broadcast_to(values, (width,)) for values in (normalization.mean, normalization.std))
    if features is not None and features.dim is None:
        keep, dim = np.unravel_index(features.keep, preprocessing.shape)[dim - 1], 1
    elif features is None or features.dim != dim:
        keep = np.arange(width)
    return Normalization(tuple(mean[keep].tolist()), tuple(std[keep].tolist()), dim=dim)


# --- in ONNX


def preprocess_model(
    network: onnx.ModelProto, preprocessing: Preprocessing, scale: bool = True, name: str | None = None
) -> onnx.ModelProto:
    """The graph from the raw full input to what `network` takes; without `scale` it only gathers.

    Of a network with several inputs it is that of the one of this name, which may be nothing at all.
    """
    front = _Front(network, preprocessing, name)
    if preprocessing.features is not None:
        front.gather()
    if scale:
        front.scale()
    if not front.nodes:
        front.pass_on()
    gives = onnx.ValueInfoProto()
    gives.CopyFrom(front.network)
    gives.name = front.nodes[-1].output[0] = _other("features", front.network.name)
    if not scale:
        gives.type.tensor_type.elem_type = front.kind
    graph = helper.make_graph(
        front.nodes, "preprocess", [front.input(preprocessing.features is not None)], [gives], front.constants
    )
    return helper.make_model(
        graph, opset_imports=list(network.opset_import), ir_version=network.ir_version, producer_name="edgeprune"
    )


def numbering_model(network: onnx.ModelProto, numbers: np.ndarray, name: str | None = None) -> onnx.ModelProto:
    """The graph from old ids to the new ones, which `network` takes in its only input or in the one of this name.

    `numbers` `(n_ids,)` are the new ids of all old ones.
    """
    taken = _input_of(network, name)
    kind = taken.type.tensor_type.elem_type
    old, gives = onnx.ValueInfoProto(), onnx.ValueInfoProto()
    old.CopyFrom(taken)
    gives.CopyFrom(taken)
    gives.name, held = _other("features", old.name), _other("new_ids", old.name)
    table = numpy_helper.from_array(numbers.astype(helper.tensor_dtype_to_np_dtype(kind)), held)
    node = helper.make_node("Gather", [held, old.name], [gives.name], name="new_ids_of_old", axis=0)
    graph = helper.make_graph([node], "preprocess", [old], [gives], [table])
    return helper.make_model(
        graph, opset_imports=list(network.opset_import), ir_version=network.ir_version, producer_name="edgeprune"
    )


def fold_preprocessing(
    network: onnx.ModelProto, preprocessing: Preprocessing, gather: bool = False, name: str | None = None
) -> onnx.ModelProto:
    """A copy of `network` that takes raw inputs: uint8 where there is a byte scale, else floats.

    Args:
        network: takes the normalised input, and of that only the kept features where there are some.
        gather: take the raw full input and gather the features inside; else take the raw kept features.
        name: of the input that it is done to, where there are several.

    Raises:
        InputError: the network has several inputs or one that is not floating point, the normalisation does not fit
            the shape, or there is nothing to fold.
    """
    preprocessing.check_foldable()
    front = _Front(network, preprocessing, name)
    if gather and preprocessing.features is not None:
        front.gather()
    front.scale()
    folded = onnx.ModelProto()
    folded.CopyFrom(network)
    graph = folded.graph
    raw = next(value for value in graph.input if value.name == front.network.name)
    front.nodes[-1].output[0] = f"{front.prefix}normalized"
    _rename(graph.node, raw.name, f"{front.prefix}normalized")
    raw.CopyFrom(front.input(gather and preprocessing.features is not None))
    network_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front.nodes, *network_nodes])
    graph.initializer.extend(front.constants)
    onnx.checker.check_model(folded)
    return folded


class _Front:
    """Nodes that are chained one after another, from the raw input on."""

    def __init__(self, network: onnx.ModelProto, preprocessing: Preprocessing, name: str | None = None) -> None:
        preprocessing.check()
        self.network, self.preprocessing = _input_of(network, name), preprocessing
        self.wanted = self.network.type.tensor_type.elem_type
        self.kind = self.wanted if preprocessing.byte_scale is None else TensorProto.UINT8
        self.prefix = _free_prefix(network)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.value = self.network.name

    def input(self, gathers: bool) -> onnx.ValueInfoProto:
        """The raw input: full where features are gathered, else with the sizes that the network takes, free or not."""
        sizes = [size.dim_param or size.dim_value for size in self.network.type.tensor_type.shape.dim]
        if gathers:
            features, shape = self.preprocessing.features, self.preprocessing.shape
            if features is None or features.dim is None:
                sizes = [sizes[0], *shape]
            else:
                sizes[features.dim] = shape[features.dim - 1]
        return helper.make_tensor_value_info(self.network.name, self.kind, sizes)

    def gather(self) -> None:
        features = self.preprocessing.features
        assert features is not None
        if features.dim is None and len(self.preprocessing.shape) > 1:
            self._add("Flatten", axis=1)
        self._add("Gather", np.asarray(features.keep, dtype=np.int64), axis=features.dim or 1)

    def scale(self) -> None:
        """What the scaling of a byte adds is taken into mean and std, in float64."""
        if not self.preprocessing.scales:
            return
        if self.wanted not in _FLOATS:
            got = TensorProto.DataType.Name(self.wanted).lower()
            raise InputError(f"preprocessing: expected a network that takes floats, got {got} {self.network.name!r}")
        if self.kind != self.wanted:
            self._add("Cast", to=self.wanted)
        n_dims, array_type = len(self.network.type.tensor_type.shape.dim), helper.tensor_dtype_to_np_dtype(self.wanted)
        mean, std = spread_numbers(feature_scaling(self.preprocessing), n_dims)
        unit = self.preprocessing.byte_scale or 1.0
        if mean.any():
            self._add("Sub", (mean / unit).astype(array_type))
        self._add("Div", (std / unit).astype(array_type))

    def pass_on(self) -> None:
        """Hand the input on as it is."""
        self._add("Identity")

    def _add(self, op: str, constant: np.ndarray | None = None, **attributes: int) -> None:
        name, inputs = f"{self.prefix}{op.lower()}", [self.value]
        if constant is not None:
            self.constants.append(numpy_helper.from_array(constant, f"{name}_by"))
            inputs.append(f"{name}_by")
        node = helper.make_node(op, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        self.value = name


def _input_of(network: onnx.ModelProto, name: str | None) -> onnx.ValueInfoProto:
    """The input of this name, the only one where none is said."""
    held = {tensor.name for tensor in network.graph.initializer}  # an input that may be left out: a state
    inputs = [value for value in network.graph.input if value.name not in held and name in (None, value.name)]
    if len(inputs) != 1:
        raise InputError(f"preprocessing: expected a network with one input, got {[value.name for value in inputs]}")
    return inputs[0]


def _other(wanted: str, taken: str) -> str:
    """The name that is wanted, or another where an input has it."""
    return f"{wanted}_1" if wanted == taken else wanted


def is_scaling(name: str) -> bool:
    """Whether a constant of a file into which preprocessing is folded is a mean or std, by its name."""
    return re.fullmatch(r"front_(\d+_)?(sub|div)_by", name) is not None


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let nodes read the value `new` for `old`, in the bodies of loops and branches too."""
    for node in nodes:
        node.input[:] = [new if value == old else value for value in node.input]
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _rename(graph.node, old, new)


def _free_prefix(network: onnx.ModelProto) -> str:
    """A start of names that none in the network has, `front_` or `front_2_` and so on."""
    graph = network.graph
    names = {tensor.name for tensor in (*graph.initializer, *graph.input)}
    for node in graph.node:
        names.update((node.name, *node.output))
    candidates = ("front_" if k == 1 else f"front_{k}_" for k in range(1, len(names) + 2))
    return next(prefix for prefix in candidates if not any(name.startswith(prefix) for name in names))
