"""What onnxruntime makes of another program's ONNX file, to compare what is made of it with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.onnxindices import index_bounds, kept_ids
from edgeprune.export.parity import Sample, error_on, outputs_of
from edgeprune.formats.onnx.file import parse_onnx
from edgeprune.graph.drawn import Leaf, drawn_tensor
from edgeprune.graph.indices import UNBOUNDED, IndexRange
from edgeprune.graph.specs import BATCHES, InputSpec, batches_of, batches_of_one_size, fitted
from edgeprune.reading import parse_json
from edgeprune.tasks.task import Task

_MAX_DRAWN = 2**27  # elements: 1 GiB while they are drawn
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(int8)": torch.int8,
    "tensor(bool)": torch.bool,
}


def samples_of_file(path: Path, inputs: Any = None, batch: int | None = None, task: Task | None = None) -> list[Sample]:
    """What onnxruntime gives for an ONNX file on all rows of `inputs`, and at batch 1, 3 and 7 where the batch is free.

    Args:
        path: the file.
        inputs: array `(n, ...)`, or a sequence of them for several inputs; None draws seeded random ones.
        batch: all rows in batches of this size alone, the last one filled with rows from the start.
        task: what the outputs are for, see `parity.Sample`.

    Raises:
        InputError: the file does not load, or the inputs do not fit it.
        ParityError: the file does not run on them, or gives NaN.
    """
    session = ort.session(path)
    specs = tuple(spec_of(path, value) for value in session.get_inputs())
    for value in session.get_outputs():
        _type(path, value)
    failures = []
    for given in _drawn(path, session) if inputs is None else [fitted(specs, inputs, f"{path}: inputs to check on")]:
        batches = batches_of(given, specs) if batch is None else batches_of_one_size(given, specs, batch)
        try:
            return [replace(_run(session, tensors), task=task) for tensors in batches]
        except ParityError as error:
            failures.append(error)
    raise failures[0]


def _run(session: InferenceSession, tensors: Sequence[Tensor]) -> Sample:
    args = tuple(tensor.numpy() for tensor in tensors)
    outputs = outputs_of(session, args)
    if any(np.isnan(output).any() for output in outputs if output.dtype.kind == "f"):
        raise ParityError("the ONNX file gives NaN, so nothing that is made of it can be checked")
    return Sample(args, outputs)


def parity_with(session: InferenceSession, samples: Sequence[Sample], what: str, tolerance: float) -> float:
    """The largest absolute error of a session over all samples; errors as `parity.check_parity`."""
    errors = (
        error_on(sample, outputs_of(session, sample.inputs), f"{what}{sample.where}", tolerance) for sample in samples
    )
    return max(errors, default=0.0)


def _drawn(path: Path, session: InferenceSession) -> Iterator[list[Tensor]]:
    """Seeded inputs that the file accepts, with the largest batch that is checked; several, best first."""
    graph = parse_onnx(path).graph
    bounds, kept = index_bounds(graph), kept_ids(graph)
    leaves = []
    for value in session.get_inputs():
        shape = _shape(path, session, value)
        bound = torch.full(shape, bounds.get(value.name, UNBOUNDED))
        indices = IndexRange(torch.zeros_like(bound), bound)
        leaves.append(Leaf(_type(path, value), shape, frozenset(), None, indices, kept.get(value.name)))
    for surely in (False, True):
        generator = torch.Generator().manual_seed(0)
        yield [drawn_tensor(leaf, generator, surely) for leaf in leaves]


def _shape(path: Path, session: InferenceSession, value: Any) -> tuple[int, ...]:
    """The file's shape with the largest batch; other free sizes are those that edgeprune wrote into the file."""
    wanted = [max(BATCHES), *value.shape[1:]] if value.shape and not isinstance(value.shape[0], int) else value.shape
    if all(isinstance(size, int) for size in wanted):
        if np.prod(wanted, dtype=float) > _MAX_DRAWN:
            raise InputError(
                f"{path}: input {value.name!r} is too large to draw {wanted}: inputs to check on are needed"
            )
        return tuple(wanted)
    stated = _stated_shape(session.get_modelmeta().custom_metadata_map.get("edgeprune.input_shape", ""))
    if len(stated) + 1 != len(wanted):
        raise InputError(f"{path}: input {value.name!r} has free sizes {value.shape}: inputs to check on are needed")
    return tuple(w if isinstance(w, int) else s for w, s in zip(wanted, (max(BATCHES), *stated), strict=True))


def _stated_shape(text: str) -> tuple[int, ...]:
    try:
        sizes = parse_json(text, "edgeprune.input_shape: expected sizes")
    except InputError:
        return ()
    sane = isinstance(sizes, list) and all(type(size) is int and 0 < size <= 2**16 for size in sizes)
    return tuple(sizes) if sane and max(BATCHES) * np.prod(sizes, dtype=float) <= _MAX_DRAWN else ()


def spec_of(path: Path, value: Any) -> InputSpec:
    """What a session says of an input."""
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return InputSpec(value.name, sizes, _type(path, value))


def _type(path: Path, value: Any) -> torch.dtype:
    if value.type not in _TYPES:
        raise InputError(f"{path}: {value.name!r}: expected a tensor of numbers, got {value.type}")
    return _TYPES[value.type]
