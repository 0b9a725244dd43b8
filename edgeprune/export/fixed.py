"""ONNX with a fixed batch, which accelerators on phones ask for: NNAPI takes no node whose sizes are free."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.onnx_model_utils import fix_output_shapes, make_dim_param_fixed, remove_invalid_dim_values

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.onnxfile import parity_with, samples_of_file
from edgeprune.export.parity import PARITY_TOLERANCE, Sample, quiet
from edgeprune.files import write_atomically
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import error_reason
from edgeprune.results import ExportedFile
from edgeprune.tasks.task import Task

MAX_BATCH = 2**16
_GROWTH_BYTES = 2**16  # folded shapes are stored once for each place that reads them


def with_fixed_batch(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy of a graph with every free first size of its inputs at `batch`, and what follows for its outputs.

    The given graph stays as it is. One that is fixed already is copied if it is fixed at `batch`.

    Raises:
        InputError: `batch` is out of range, the graph has another fixed batch, or has no batch at all.

    Example: `with_fixed_batch(onnx.load("slim.onnx"), 1)`.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch: expected 1 to {MAX_BATCH}, got {batch}")
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    _check_batch(fixed, batch)
    remove_invalid_dim_values(fixed.graph)
    for value in fixed.graph.input:
        first = value.type.tensor_type.shape.dim[:1]
        if first and first[0].dim_param:
            make_dim_param_fixed(fixed.graph, first[0].dim_param, batch)
        elif first and not first[0].dim_value:
            first[0].dim_value = batch
    _fix_outputs(fixed)
    return fixed


def write_fixed_batch(  # noqa: PLR0913 - two places, and a decision of the caller each
    source: Path,
    out: Path,
    batch: int,
    inputs: Any = None,
    *,
    tolerance: float = PARITY_TOLERANCE,
    task: Task | None = None,
) -> ExportedFile:
    """Write an ONNX file again with a fixed batch, after checking in onnxruntime that it gives the same.

    Shapes that the graph computes from its batch are folded (by onnxsim) where the result agrees.

    Args:
        source: a file with a free batch.
        out: the file to write, whole or not at all; may be `source`.
        batch: the size of every batch.
        inputs: real inputs `(n, ...)` to check on (a sequence of them for several inputs); all are used, the last
            batch filled with rows from the start. None draws seeded ones.
        tolerance: as for `export_onnx`.
        task: as for `export_onnx`.

    Raises:
        InputError: as `with_fixed_batch`, or `source` cannot be read or run.
        ParityError: the file with the fixed batch gives something else; nothing is written.
    """
    fixed = with_fixed_batch(read_onnx(source), batch)
    samples = samples_of_file(source, inputs, batch, task)
    what = f"{out.name} with the batch fixed"
    content = fixed.SerializeToString(deterministic=True)
    parity = _parity(content, samples, what, tolerance)
    smaller = None if has_defaults(fixed.graph) else _folded(fixed)  # onnxsim takes a default for a constant
    if smaller is not None:
        with contextlib.suppress(InputError, ParityError):  # the graph as it was is checked and right
            smaller_content = smaller.SerializeToString(deterministic=True)
            parity = _parity(smaller_content, samples, what, tolerance)
            content = smaller_content
    write_atomically(out, content)
    return ExportedFile(str(out), len(content), parity)


def is_batch_free(proto: onnx.ModelProto) -> bool:
    """Whether the first size of an input is free."""
    return any(dims and dims[0].dim_value < 1 for dims in _input_dims(proto))  # some exporters write -1


def has_defaults(graph: onnx.GraphProto) -> bool:
    """Whether an input may be left out, as that of a state may."""
    held = {tensor.name for tensor in graph.initializer}
    return any(value.name in held for value in graph.input)


def _check_batch(proto: onnx.ModelProto, batch: int) -> None:
    """Refuse a graph whose batches are all fixed, at other numbers than the one asked for."""
    if is_batch_free(proto):
        return
    got = sorted({dims[0].dim_value for dims in _input_dims(proto) if dims})
    if got != [batch]:
        shown = f"a batch fixed at {', '.join(map(str, got))}" if got else "no input with a batch"
        raise InputError(f"batch: expected a graph with a free batch, to fix it at {batch}, got {shown}")


def _input_dims(proto: onnx.ModelProto) -> list[Any]:
    held = {tensor.name for tensor in proto.graph.initializer}
    return [value.type.tensor_type.shape.dim for value in proto.graph.input if value.name not in held]


def _fix_outputs(proto: onnx.ModelProto) -> None:
    try:
        fix_output_shapes(proto)
    except Exception as error:  # onnx's checker and shape inference raise their own types
        reason = error_reason(error)
        raise InputError(f"the batch cannot be fixed: the graph is not valid ONNX: {reason}") from error


def _folded(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """onnxsim's graph where it has fewer nodes, without the shapes that it notes down."""
    import onnxsim

    try:
        with quiet():
            simplified, _ = onnxsim.simplify(proto)
    except Exception:  # a C++ library: the type says nothing; there is the graph as it is
        return None
    del simplified.graph.value_info[:]
    if len(simplified.graph.node) >= len(proto.graph.node) or simplified.ByteSize() > proto.ByteSize() + _GROWTH_BYTES:
        return None
    onnx.helper.set_model_props(simplified, {entry.key: entry.value for entry in proto.metadata_props})
    return simplified


def _parity(content: bytes, samples: list[Sample], what: str, tolerance: float) -> float:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / "fixed.onnx"
        path.write_bytes(content)
        try:
            session = ort.session(path)
        except InputError as error:
            raise ParityError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from error
    return parity_with(session, samples, what, tolerance)
