"""A network's file that is ready to run, and what makes its input of raw data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from edgeprune.data import batches, normalize
from edgeprune.data.inputs import Inputs, size_along
from edgeprune.data.labels import with_classes_of
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.answers import Answering, structure_in
from edgeprune.export.front import raw_bytes
from edgeprune.export.gated import OneByOne, gated_in
from edgeprune.export.metadata import (
    byte_scale_in,
    folded_normalization_in,
    named_normalization_in,
    normalization_in,
)
from edgeprune.export.onnxfile import spec_of
from edgeprune.lines import shown
from edgeprune.measure.fixedbatch import with_free_batch
from edgeprune.measure.foreign import batch_of, bounds_of, check_file, readable, stated_in, width_of
from edgeprune.measure.namedfile import NamedFile, named_file
from edgeprune.reading import parse_json
from edgeprune.records import IDENTITY, DataSource, Normalization
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.outputs import leaves
from edgeprune.tasks.task import Task

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FLOATS: Mapping[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
}  # fmt: skip
_SLOWER = 20  # times the time for one sample, for each of a batch


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFile:
    """One file that is ready to run, and what makes its input from raw data: a normalisation, or preprocess.onnx.

    `structure` is how its outputs belong together, as for `Answering`. `named` is how it takes inputs by name, None
    where the data have one without.
    """

    path: Path
    session: InferenceSession
    size_bytes: int
    bounds: ort.Bounds
    normalization: Normalization | None  # None: the file does not say
    structure: Any = None
    preprocess: InferenceSession | None = None
    byte_scale: float | None = None
    dtype: type[np.floating[Any]] = np.float32
    named: NamedFile | None = None

    def inputs(self, raw: Inputs) -> ort.Feed:
        """The file's inputs for raw ones `(batch, ...)`."""
        if not isinstance(raw, torch.Tensor):
            assert self.named is not None
            return self.named.inputs(raw, self.normalization or IDENTITY, self.bounds)
        handed = raw.numpy() if self.byte_scale is None else raw_bytes(raw.numpy(), self.byte_scale)
        if self.preprocess is not None:
            return ort.run(self.preprocess, handed, self.bounds)
        if self.byte_scale is not None:
            return handed
        return np.ascontiguousarray(normalize(raw, self.normalization or IDENTITY).numpy(), self.dtype)

    @property
    def is_told(self) -> bool:
        """Whether it is known how its inputs are made of raw ones."""
        is_made = self.preprocess is not None or (self.named is not None and not self.named.is_open)
        return self.normalization is not None or is_made

    def answers(self, raw: Inputs) -> Any:
        """What the network gives out, as the task takes it; raises InputError where it is not finite."""
        try:
            found = Answering(self.session, self.structure, self.bounds)(self.inputs(raw))
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        for (name, values), own in zip(leaves(found), self.session.get_outputs(), strict=False):
            if not np.isfinite(values).all():
                raise InputError(
                    f"{self.path}: expected finite {name or own.name} on the test split, got NaN or infinity"
                )
        return found


# --- open


def with_classes_of_file(data: DataSource, path: Path) -> DataSource:
    """The data with the class numbers of a network's file, by the names that it states or the number of its outputs."""
    if data.targets.kind != "classes":
        return data
    stated = stated_in(path).get("edgeprune.classes", "[]")
    expected = f"{path}: edgeprune.classes: expected a list of names"
    names = parse_json(stated, expected)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{expected}, got {shown(stated, 80)}")
    return with_classes_of(data, names, width_of(path))


def opened(path: Path, data: DataSource, task: Task) -> NetworkFile:
    """A checked file, with the preprocessing that stands beside it where it takes only some of the features."""
    size_bytes = check_file(path)
    bounds = bounds_of(size_bytes, data)
    session = _plain(path, readable(path, bounds))
    if isinstance(task, Classification):
        _check_outputs(path, session, len(data.classes))
    plain = NetworkFile(path, session, size_bytes, bounds, None)
    return _tried(_named(plain, data) if data.inputs else _fed(path, session, plain, data), data, task)


def _plain(path: Path, session: InferenceSession) -> InferenceSession:
    """The session; of a file with a batch of its own, or that picks a width for each sample, one that takes any."""
    names = [value.name for value in session.get_outputs()]
    gated = gated_in(session.get_modelmeta().custom_metadata_map, names, str(path))
    return with_free_batch(session) if gated is None else cast("InferenceSession", OneByOne(session, gated))


def _named(network: NetworkFile, data: DataSource) -> NetworkFile:
    """The network with all that makes its inputs of raw data by name, and its outputs what they are."""
    session, where = network.session, str(network.path)
    metadata = session.get_modelmeta().custom_metadata_map
    names = [value.name for value in session.get_outputs()]
    named = named_file(network.path, session, data, network.bounds)
    stated = None if named.preprocess is not None else named_normalization_in(metadata, where)
    return replace(network, normalization=stated, structure=structure_in(metadata, names, where), named=named)


def _fed(path: Path, session: InferenceSession, network: NetworkFile, data: DataSource) -> NetworkFile:
    """The network with all that makes its input of raw data, and its outputs what they are."""
    shape = _input_shape(path, session)
    metadata = session.get_modelmeta().custom_metadata_map
    stated = normalization_in(metadata, str(path))
    names = [value.name for value in session.get_outputs()]
    network = replace(network, normalization=stated, structure=structure_in(metadata, names, str(path)))
    if not _accepts(shape, data.input_shape):
        preprocess = _preprocess(path, shape, data)
        return replace(network, preprocess=preprocess, byte_scale=_byte_scale(path, preprocess))
    width = 1 if stated is None else size_along(stated.dim, data.input_shape)
    if stated is not None and not {len(stated.mean), len(stated.std)} <= {1, width}:
        raise InputError(
            f"{path}: edgeprune.normalization: expected 1 or {width} values, "
            f"got {len(stated.mean)} and {len(stated.std)}"
        )
    dtype = _FLOATS.get(session.get_inputs()[0].type, np.float32)
    return replace(network, byte_scale=_byte_scale(path, session), dtype=dtype)


def trained_normalization(network: NetworkFile) -> Normalization | None:
    """What the network itself was trained with: where its file takes raw inputs, what is folded into it.

    Of a file that takes kept features alone, what preprocess.onnx scales all of them by.
    """
    if network.preprocess is not None:
        beside = str(network.path.parent / "preprocess.onnx")
        return normalization_in(network.preprocess.get_modelmeta().custom_metadata_map, beside)
    metadata = network.session.get_modelmeta().custom_metadata_map
    if network.named is not None:
        folded_by_name = folded_normalization_in(metadata, str(network.path))
        return (
            network.normalization if network.named.preprocess is not None else folded_by_name or network.normalization
        )
    folded = metadata.get("edgeprune.folded_normalization")
    if folded is None:
        return network.normalization
    return normalization_in({"edgeprune.normalization": folded}, str(network.path))


def _tried(network: NetworkFile, data: DataSource, task: Task) -> NetworkFile:
    """The network, once it has run on one sample and gives what the task takes; more samples may take as much longer.

    Raises:
        InputError: it does not run, or its outputs do not fit the task.
    """
    x, _ = next(batches(data.test, 1))
    start = time.perf_counter()
    outputs = network.answers(x)
    seconds = network.bounds.seconds + _SLOWER * batch_of(data) * (time.perf_counter() - start)
    try:
        task.check(outputs, data)
    except InputError as error:
        raise InputError(f"{network.path}: {error}") from error
    return replace(network, bounds=replace(network.bounds, seconds=seconds))


def _preprocess(path: Path, shape: tuple[int | None, ...], data: DataSource) -> InferenceSession:
    """The session of the preprocess.onnx beside `path` that makes its inputs from raw data."""
    beside = path.parent / "preprocess.onnx"
    expected = f"{path}: expected an input {_show(data.input_shape)} as in data {data.name}, got {_show(shape)}"
    if not beside.is_file():
        raise InputError(f"{expected}, and no preprocess.onnx beside it that would select its features")
    session = with_free_batch(ort.session(beside, bounds=bounds_of(check_file(beside), data)))
    takes, gives = _input_shape(beside, session), tuple(session.get_outputs()[0].shape[1:])
    if not _accepts(takes, data.input_shape):
        raise InputError(f"{beside}: expected an input {_show(data.input_shape)}, got {_show(takes)}")
    if not all(isinstance(size, int) for size in gives) or not _accepts(shape, gives):
        raise InputError(f"{beside}: expected an output {_show(shape)} as {path.name} takes, got {_show(gives)}")
    return session


def _input_shape(path: Path, session: InferenceSession) -> tuple[int | None, ...]:
    """Shape without the batch of the only input, None where a size is free."""
    inputs = session.get_inputs()
    takes = {*_FLOATS} if _byte_scale(path, session) is None else {"tensor(uint8)"}
    if len(inputs) != 1 or inputs[0].type not in takes:
        got = ", ".join(f"{value.name} {value.type}" for value in inputs) or "none"
        expected = "uint8" if "tensor(uint8)" in takes else "float32"
        raise InputError(f"{path}: expected one {expected} input, got {got}")
    if not inputs[0].shape:
        raise InputError(f"{path}: expected a free batch as the first size of its input, got {inputs[0].shape}")
    return spec_of(path, inputs[0]).shape[1:]


def _byte_scale(path: Path, session: InferenceSession) -> float | None:
    return byte_scale_in(session.get_modelmeta().custom_metadata_map, str(path))


def _check_outputs(path: Path, session: InferenceSession, n_classes: int) -> None:
    outputs = session.get_outputs()
    if len(outputs) > 1:
        got = ", ".join(f"{value.name} {_sizes(value.shape)}" for value in outputs)
        raise InputError(f"{path}: expected one output (batch, {n_classes}) as the data has classes, got {got}")
    shape = outputs[0].shape
    if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != n_classes):
        raise InputError(f"{path}: expected an output (batch, {n_classes}) as the data has classes, got {shape}")


def _accepts(shape: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    return len(shape) == len(given) and all(size in (None, have) for size, have in zip(shape, given, strict=True))


def _show(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join(["batch", *("*" if size is None else str(size) for size in shape)]) + ")"


def _sizes(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
