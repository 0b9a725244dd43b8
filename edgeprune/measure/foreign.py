"""Files of networks that come from anywhere: what they say of themselves, and what they may take while they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data import first_samples
from edgeprune.data.inputs import first_of
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.formats.onnx.file import check_external, parse_onnx
from edgeprune.records import DataSource

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BATCH = 256
_ELEMENTS = 2**22  # of a batch
_SPARE_BYTES = 768 * 2**20
_COPIES = 8  # of its weights
_ACTIVATIONS = 512  # times the bytes of a batch
_FLOAT_BYTES = 4
_SECONDS = 10.0  # of a run on one sample
ORT_SUFFIX = ".ort"


def stated_in(path: Path) -> dict[str, str]:
    """What a network's file says of itself; raises InputError where it is none."""
    if path.suffix == ORT_SUFFIX:
        return dict(loaded(path).get_modelmeta().custom_metadata_map)
    return {entry.key: entry.value for entry in parse_onnx(path).metadata_props}


def loaded(path: Path) -> InferenceSession:
    """A session of a file, which an .ort file tells of itself by alone."""
    return readable(path, ort.Bounds(_SPARE_BYTES + _COPIES * check_file(path), _SECONDS))


def readable(path: Path, bounds: ort.Bounds) -> InferenceSession:
    """A session that tells its names and what the file says of itself; raises InputError where these are no text."""
    session = ort.session(path, bounds=bounds)
    try:
        _ = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
        _ = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected names and metadata in UTF-8, got other bytes") from error
    return session


def width_of(path: Path) -> int | None:
    """How many numbers the outputs of a network hold for a sample, where that is all that they say."""
    if path.suffix == ORT_SUFFIX:
        sizes = [size for value in loaded(path).get_outputs() for size in value.shape]
    else:
        graph = parse_onnx(path).graph
        sizes = [dim.dim_value for value in graph.output for dim in value.type.tensor_type.shape.dim]
    return sizes[1] if len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] else None


def bounds_of(size_bytes: int, data: DataSource) -> ort.Bounds:
    """What a network of this size may take while it is loaded and run on one sample.

    Weights are copied some times, and what layers give out is larger than what comes in.
    """
    batch_bytes = batch_of(data) * _sample_elements(data) * _FLOAT_BYTES
    return ort.Bounds(_SPARE_BYTES + _COPIES * size_bytes + _ACTIVATIONS * batch_bytes, _SECONDS)


def check_file(path: Path) -> int:
    """Size in bytes of an ONNX file that refers to nothing outside its folder; raises InputError otherwise."""
    if path.suffix == ORT_SUFFIX:  # it holds all its weights
        return _check_there(path)
    return check_external(path, parse_onnx(path))


def _check_there(path: Path) -> int:
    """Size in bytes; raises InputError where there is no file."""
    if not path.is_file():
        raise InputError(f"{path}: expected an .ort file, got {'a folder' if path.is_dir() else 'nothing there'}")
    return path.stat().st_size


def batch_of(data: DataSource) -> int:
    """How many samples are run at a time."""
    return max(1, min(_BATCH, _ELEMENTS // max(1, _sample_elements(data))))


def _sample_elements(data: DataSource) -> int:
    """How many numbers all inputs of a sample hold together."""
    if not data.inputs:
        return int(np.prod(data.input_shape))
    first = first_samples(data.test, 1)
    return sum(x.numel() for x in first.values()) if isinstance(first, dict) else first_of(first).numel()
