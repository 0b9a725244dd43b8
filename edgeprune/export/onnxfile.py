"""What onnxruntime makes of another program's ONNX file, to compare what is made of it with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.onnxindices import index_bounds
from edgeprune.export.parity import Sample, error_on, outputs_of, row_chunks
from edgeprune.formats.onnx.file import parse_onnx
from edgeprune.graph.drawn import Leaf, drawn_tensor
from edgeprune.graph.indices import UNBOUNDED, IndexRange
from edgeprune.reading import parse_json

_BATCHES = (1, 3, 7)
_MAX_DRAWN = 2**27  # elements: 1 GiB while they are drawn
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def samples_of_file(path: Path, inputs: Any = None, batch: int | None = None) -> list[Sample]:
    """What onnxruntime gives for an ONNX file on all rows of `inputs`, and at batch 1, 3 and 7 where the batch is free.

    Args:
        path: the file.
        inputs: array `(n, ...)`, or a sequence of them for several inputs; None draws seeded random ones.
        batch: all rows in batches of this size alone, the last one filled with rows from the start.

    Raises:
        InputError: the file does not load, or the inputs do not fit it.
        ParityError: the file does not run on them, or gives NaN.
    """
    session = ort.session(path)
    values = session.get_inputs()
    for value in (*values, *session.get_outputs()):
        _type(path, value)
    failures = []
    for given in _drawn(path, session) if inputs is None else [_fitted(path, session, inputs)]:
        try:
            return _run(session, given, batch)
        except ParityError as error:
            failures.append(error)
    raise failures[0]


def _run(session: InferenceSession, given: Sequence[np.ndarray], batch: int | None) -> list[Sample]:
    batched = [bool(value.shape) and not isinstance(value.shape[0], int) for value in session.get_inputs()]
    samples = []
    for rows in _rows(given, batched, batch):
        args = given if rows is None else _taken(given, batched, rows)
        outputs = outputs_of(session, args)
        if any(np.isnan(output).any() for output in outputs if output.dtype.kind == "f"):
            raise ParityError("the ONNX file gives NaN, so nothing that is made of it can be checked")
        samples.append(Sample(tuple(args), outputs))
    return samples


def parity_with(session: InferenceSession, samples: Sequence[Sample], what: str, tolerance: float) -> float:
    """The largest absolute error of a session over all samples; errors as `parity.check_parity`."""
    errors = (
        error_on(sample, outputs_of(session, sample.inputs), f"{what}{sample.where}", tolerance) for sample in samples
    )
    return max(errors, default=0.0)


def _rows(given: Sequence[np.ndarray], batched: Sequence[bool], batch: int | None) -> Iterator[np.ndarray | None]:
    """The rows of each run; None stands for the inputs as they are, where no batch is free."""
    free = [array for array, is_free in zip(given, batched, strict=True) if is_free]
    if not free:
        yield None
        return
    n_rows = len(free[0])
    if batch is not None:
        for start in range(0, n_rows, batch):
            yield np.arange(start, start + batch) % n_rows
        return
    chunks = [np.arange(n_rows)[chunk] for chunk in row_chunks(n_rows, max(array[0].size for array in free))]
    present = {len(chunk) for chunk in chunks}
    yield from chunks
    yield from (np.arange(size) % n_rows for size in _BATCHES if size not in present)


def _taken(given: Sequence[np.ndarray], batched: Sequence[bool], rows: np.ndarray) -> list[np.ndarray]:
    return [array[rows] if is_free else array for array, is_free in zip(given, batched, strict=True)]


def _fitted(path: Path, session: InferenceSession, inputs: Any) -> list[np.ndarray]:
    """The caller's inputs in the file's types, their shapes checked."""
    values = session.get_inputs()
    arrays = [inputs] if isinstance(inputs, np.ndarray) or hasattr(inputs, "numpy") else list(inputs)
    if len(arrays) != len(values):
        raise InputError(f"{path}: inputs to check on: expected {len(values)} arrays, got {len(arrays)}")
    fitted = [np.ascontiguousarray(array, dtype=_type(path, v)) for array, v in zip(arrays, values, strict=True)]
    for array, value in zip(fitted, values, strict=True):
        fits = array.ndim == len(value.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(value.shape, array.shape, strict=True)
        )
        if not fits or 0 in array.shape:
            want = "(" + ", ".join(str(size) if isinstance(size, int) else "*" for size in value.shape) + ")"
            raise InputError(f"{path}: inputs to check on: {value.name}: expected {want}, got {array.shape}")
    return fitted


def _drawn(path: Path, session: InferenceSession) -> Iterator[list[np.ndarray]]:
    """Seeded inputs that the file accepts, with the largest batch that is checked; several, best first."""
    bounds = index_bounds(parse_onnx(path).graph)
    leaves = []
    for value in session.get_inputs():
        shape = _shape(path, session, value)
        bound = torch.full(shape, bounds.get(value.name, UNBOUNDED))
        dtype = torch.from_numpy(np.zeros(0, _type(path, value))).dtype
        leaves.append(Leaf(dtype, shape, frozenset(), None, IndexRange(torch.zeros_like(bound), bound)))
    for surely in (False, True):
        generator = torch.Generator().manual_seed(0)
        yield [drawn_tensor(leaf, generator, surely).numpy() for leaf in leaves]


def _shape(path: Path, session: InferenceSession, value: Any) -> tuple[int, ...]:
    """The file's shape with the largest batch; other free sizes are those that edgeprune wrote into the file."""
    wanted = [max(_BATCHES), *value.shape[1:]] if value.shape and not isinstance(value.shape[0], int) else value.shape
    if all(isinstance(size, int) for size in wanted):
        if np.prod(wanted, dtype=float) > _MAX_DRAWN:
            raise InputError(
                f"{path}: input {value.name!r} is too large to draw {wanted}: inputs to check on are needed"
            )
        return tuple(wanted)
    stated = _stated_shape(session.get_modelmeta().custom_metadata_map.get("edgeprune.input_shape", ""))
    if len(stated) + 1 != len(wanted):
        raise InputError(f"{path}: input {value.name!r} has free sizes {value.shape}: inputs to check on are needed")
    return tuple(w if isinstance(w, int) else s for w, s in zip(wanted, (max(_BATCHES), *stated), strict=True))


def _stated_shape(text: str) -> tuple[int, ...]:
    try:
        sizes = parse_json(text, "edgeprune.input_shape: expected sizes")
    except InputError:
        return ()
    sane = isinstance(sizes, list) and all(type(size) is int and 0 < size <= 2**16 for size in sizes)
    return tuple(sizes) if sane and max(_BATCHES) * np.prod(sizes, dtype=float) <= _MAX_DRAWN else ()


def _type(path: Path, value: Any) -> Any:
    if value.type not in _TYPES:
        raise InputError(f"{path}: {value.name!r}: expected a tensor of numbers, got {value.type}")
    return _TYPES[value.type]
