"""A float ONNX file that smaller files are made of: what it is given, what it gives, and how far another one is off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from edgeprune.errors import InputError, NotFiniteError, ParityError
from edgeprune.export import ort
from edgeprune.export.parity import outputs_of
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.graph.specs import InputSpec, batches_of, fitted, fitted_apart

MIN_OPSET = 13  # the first with a scale for each channel
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")

_WHAT = "calibration"

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class FloatFile:
    """An opened file: its graph, real inputs in batches that it takes, and its outputs on each."""

    path: Path
    proto: onnx.ModelProto
    feeds: tuple[Feed, ...]
    outputs: tuple[tuple[np.ndarray, ...], ...]

    @property
    def batched(self) -> bool:
        """Whether the batch is free."""
        return any(is_batched(value) for value in self.proto.graph.input)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close a file is to the float file on the same inputs.

    `snr_db` is the energy of the float outputs over that of the error, in decibels, of the worst output. `argmax` is
    the share of rows with the same best class, None where there is another output than `(n, n_classes)` scores.
    """

    snr_db: float
    argmax: float | None


def open_float(source: Path, inputs: Any, threads: int = 1) -> FloatFile:
    """Read a float file and run it.

    Args:
        source: one file, as `export_onnx` writes it.
        inputs: real inputs `(n, ...)` as the file takes them, or a sequence of them for several inputs.
        threads: onnxruntime threads within an operator.

    Raises:
        InputError: not a float ONNX file, quantised already, too old an opset, or inputs that it does not take.
    """
    proto = _read(source)
    session = ort.session(source, threads)
    feeds = tuple(_feeds(proto, inputs))
    outputs = []
    for feed in feeds:
        try:
            outputs.append(outputs_of(session, list(feed.values())))
        except ParityError as error:
            raise InputError(f"{source}: {error}") from error
    if not all(_finite(values) for values in outputs):
        raise InputError(f"{source}: expected finite outputs on the calibration inputs, got NaN or infinity")
    return FloatFile(source, proto, feeds, tuple(outputs))


def agreement(file: FloatFile, path: Path, threads: int = 1) -> Agreement:
    """Run another file on the same inputs, in the same batches and at batch 1.

    Raises:
        ParityError: it does not run on one of them, or gives other shapes.
        NotFiniteError: it gives NaN or infinity.
    """
    session = ort.session(path, threads)
    given = [outputs_of(session, list(feed.values())) for feed in file.feeds]
    alone = _first_rows(file)
    singles = outputs_of(session, list(alone.values())) if file.batched else ()
    if _shapes(file.outputs) != _shapes(given):
        raise ParityError(f"{path.name}: expected outputs of the float network's shapes, got others")
    if not all(_finite(outputs) for outputs in (*given, singles)):
        raise NotFiniteError(f"{path.name}: expected finite outputs as the float network's, got NaN or infinity")
    columns = list(zip(zip(*file.outputs, strict=True), zip(*given, strict=True), strict=True))
    worst = min((snr_db(want, got) for want, got in columns), default=math.inf)
    return Agreement(worst, _same_argmax(*columns[0]) if len(columns) == 1 else None)


def weighted_nodes(graph: onnx.GraphProto, op_types: Sequence[str] = WEIGHTED) -> list[onnx.NodeProto]:
    """The nodes of these types that hold float32 weights."""
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [
        node for node in graph.node if node.op_type in op_types and len(node.input) > 1 and floats & set(node.input[1:])
    ]


def with_header_of(file: FloatFile, made: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The content of a file with the float file's inputs, outputs and metadata, and entries of its own."""
    for name in ("input", "output"):
        values = getattr(made.graph, name)
        del values[:]
        values.extend(getattr(file.proto.graph, name))
    del made.graph.value_info[:]  # what the tools worked out to place their operators; the runtime does it again
    _drop_unused_domains(made)
    made.producer_name, made.producer_version = file.proto.producer_name, file.proto.producer_version
    entries = {entry.key: entry.value for entry in file.proto.metadata_props} | dict(metadata)
    del made.metadata_props[:]
    helper.set_model_props(made, dict(sorted(entries.items())))
    return bytes(made.SerializeToString(deterministic=True))


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """onnxruntime declares all operator sets that it knows; other runtimes refuse a file for one that they do not."""
    used = {"", "ai.onnx"} | {node.domain for node in all_nodes(model.graph.node)}
    used |= {node.domain for function in model.functions for node in all_nodes(function.node)}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those in the bodies of loops and branches."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def is_batched(value: onnx.ValueInfoProto) -> bool:
    """Whether the first size of an input is free."""
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and not dims[0].HasField("dim_value")


# --- read


def _read(source: Path) -> onnx.ModelProto:
    proto = read_onnx(source)
    found = next((node.op_type for node in proto.graph.node if _is_quantized(node)), None)
    if found is not None:
        raise InputError(f"{source}: expected a float network, got one that is quantised already ({found})")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise InputError(f"{source}: expected ONNX opset {MIN_OPSET} or later, got {opset}; export it again")
    return proto


def _is_quantized(node: onnx.NodeProto) -> bool:
    return node.op_type in _QUANTIZED or node.op_type.startswith(("QLinear", "QGemm", "QAttention", "MatMulNBits"))


# --- inputs


def _feeds(proto: onnx.ModelProto, inputs: Any) -> Iterator[Feed]:
    """The inputs by name, in batches: of the size that the file fixes, else as many rows as it can take at once."""
    specs = [_spec(value) for value in proto.graph.input]
    if any(spec.batched for spec in specs):
        batches = batches_of(_finite_inputs(specs, fitted(specs, inputs, _WHAT)), specs, sizes=())
    else:
        batches = _fixed_batches(specs, inputs)
    for tensors in batches:
        yield {spec.name: tensor.numpy() for spec, tensor in zip(specs, tensors, strict=True)}


def _fixed_batches(specs: Sequence[InputSpec], inputs: Any) -> Iterator[tuple[Tensor, ...]]:
    """Batches of the fixed size; rows that fill none are left out."""
    of_any_rows = [replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec for spec in specs]
    tensors = _finite_inputs(specs, fitted_apart(of_any_rows, inputs, _WHAT))
    batches = [_split(spec, tensor) for spec, tensor in zip(specs, tensors, strict=True)]
    yield from zip(*batches, strict=False) if any(spec.shape for spec in specs) else [tuple(tensors)]


def _split(spec: InputSpec, tensor: Tensor) -> Iterable[Tensor]:
    """The rows of an input in batches of its own size; a number again and again."""
    if not spec.shape or spec.shape[0] is None:
        return itertools.repeat(tensor)
    step = spec.shape[0]
    if len(tensor) < step:
        raise InputError(f"{_WHAT}: {spec.name}: expected {step} rows for a batch, got {len(tensor)}")
    return [tensor[start : start + step] for start in range(0, len(tensor) - step + 1, step)]


def _finite_inputs(specs: Sequence[InputSpec], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    for spec, tensor in zip(specs, tensors, strict=True):
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{_WHAT}: {spec.name}: expected finite numbers, got NaN or infinity")
    return tensors


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    """What a graph says of an input."""
    kind = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    try:
        array = np.zeros(0, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return InputSpec(value.name, sizes, torch.from_numpy(array).dtype)
    except (KeyError, TypeError) as error:
        got = TensorProto.DataType.Name(kind.elem_type)
        raise InputError(f"{_WHAT}: {value.name}: expected an input of numbers, got {got}") from error


# --- outputs


def _first_rows(file: FloatFile) -> Feed:
    free = {value.name for value in file.proto.graph.input if is_batched(value)}
    return {name: array[:1] if name in free else array for name, array in file.feeds[0].items()}


def _shapes(batches: Sequence[Sequence[np.ndarray]]) -> list[list[tuple[int, ...]]]:
    return [[array.shape for array in outputs] for outputs in batches]


def _finite(outputs: Sequence[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f")


def snr_db(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """E.g. 20 for an error of a tenth; infinity where there is none, and for single and whole numbers."""
    from onnxruntime.quantization.qdq_loss_debug import compute_signal_to_quantization_noice_ratio

    if want[0].dtype.kind != "f" or not want[0].ndim or all(map(np.array_equal, want, got)):
        return math.inf
    return float(compute_signal_to_quantization_noice_ratio(list(want), list(got)))


def _same_argmax(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float | None:
    if want[0].ndim != 2 or want[0].shape[1] < 2 or want[0].dtype.kind != "f":
        return None
    same = [a.argmax(axis=1) == b.argmax(axis=1) for a, b in zip(want, got, strict=True)]
    return float(np.concatenate(same).mean())
