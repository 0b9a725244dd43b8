"""A float ONNX file that smaller files are made of: what it is given, what it gives, and how far another one is off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.parity import outputs_of, row_chunks
from edgeprune.formats.onnx.file import read_onnx

MIN_OPSET = 13  # the first with a scale for each channel
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")

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
        ParityError: it does not run on one of them, or gives NaN, infinity or other shapes.
    """
    session = ort.session(path, threads)
    given = [outputs_of(session, list(feed.values())) for feed in file.feeds]
    alone = _first_rows(file)
    singles = outputs_of(session, list(alone.values())) if file.batched else ()
    shapes = [[array.shape for array in outputs] for outputs in (*file.outputs, *given)]
    if not all(_finite(outputs) for outputs in (*given, singles)) or shapes[: len(given)] != shapes[len(given) :]:
        raise ParityError(f"{path.name}: expected finite outputs of the float network's shapes, got others")
    columns = list(zip(zip(*file.outputs, strict=True), zip(*given, strict=True), strict=True))
    floats = [(want, got) for want, got in columns if want[0].dtype.kind == "f" and want[0].ndim]
    worst = min((_snr_db(want, got) for want, got in floats), default=math.inf)
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
    values = list(proto.graph.input)
    given = [np.asarray(inputs)] if isinstance(inputs, np.ndarray) else [np.asarray(array) for array in inputs]
    if len(given) != len(values):
        raise InputError(f"calibration: expected {len(values)} arrays ({_names(values)}), got {len(given)}")
    arrays = {value.name: _fitted(value, array) for value, array in zip(values, given, strict=True)}
    free = [value.name for value in values if is_batched(value)]
    rows = {len(arrays[name]) for name in free}
    if len(rows) > 1:
        raise InputError(f"calibration: expected as many rows of each input, got {sorted(rows)}")
    if free:
        chunks = row_chunks(rows.pop(), max(arrays[name][0].size for name in free))
        for chunk in chunks:
            yield {name: array[chunk] if name in free else array for name, array in arrays.items()}
        return
    yield from _fixed_batches(values, arrays)


def _fixed_batches(values: Sequence[onnx.ValueInfoProto], arrays: Feed) -> Iterator[Feed]:
    """Batches of the fixed size; rows that fill none are left out."""
    steps = {value.name: _sizes(value)[0] if _sizes(value) else None for value in values}
    count = min((len(arrays[name]) // step for name, step in steps.items() if step), default=1)
    for k in range(count):
        yield {
            name: arrays[name] if step is None else arrays[name][k * step : (k + 1) * step]
            for name, step in steps.items()
        }


def _fitted(value: onnx.ValueInfoProto, array: np.ndarray) -> np.ndarray:
    """The array in the type of an input, its shape checked."""
    sizes = _sizes(value)
    wanted = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    rows = sizes[0] if sizes and sizes[0] is not None else 1
    fits = array.ndim == len(sizes) and all(
        want in (None, got) for want, got in zip(sizes[1:], array.shape[1:], strict=True)
    )
    if not fits or (sizes and len(array) < rows) or 0 in array.shape:
        want = "(" + ", ".join("*" if size is None else str(size) for size in sizes) + ")"
        raise InputError(f"calibration: input {value.name!r}: expected {want}, got {array.shape}")
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InputError(f"calibration: input {value.name!r}: expected {wanted}, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"calibration: input {value.name!r}: expected finite numbers, got NaN or infinity")
    return np.ascontiguousarray(array, dtype=wanted)


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]


def _names(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values)


# --- outputs


def _first_rows(file: FloatFile) -> Feed:
    free = {value.name for value in file.proto.graph.input if is_batched(value)}
    return {name: array[:1] if name in free else array for name, array in file.feeds[0].items()}


def _finite(outputs: Sequence[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f")


def _snr_db(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """E.g. 20 for an error of a tenth; infinity where there is none."""
    from onnxruntime.quantization.qdq_loss_debug import compute_signal_to_quantization_noice_ratio

    if all(np.array_equal(a, b) for a, b in zip(want, got, strict=True)):
        return math.inf
    return float(compute_signal_to_quantization_noice_ratio(list(want), list(got)))


def _same_argmax(want: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float | None:
    if want[0].ndim != 2 or want[0].shape[1] < 2 or want[0].dtype.kind != "f":
        return None
    same = [a.argmax(axis=1) == b.argmax(axis=1) for a, b in zip(want, got, strict=True)]
    return float(np.concatenate(same).mean())
