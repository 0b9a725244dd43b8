"""Two files of networks, checked, and both run in onnxruntime on the whole test split."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from edgeprune.data import batches, normalize
from edgeprune.data.inputs import one_tensor
from edgeprune.data.labels import with_classes_of
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.answers import Answering, structure_in
from edgeprune.export.front import raw_bytes
from edgeprune.export.metadata import byte_scale_in, normalization_in
from edgeprune.formats.onnx.file import parse_onnx, tensors_in
from edgeprune.lines import shown
from edgeprune.measure.latency import compare_latency
from edgeprune.progress import Progress
from edgeprune.reading import parse_json
from edgeprune.records import IDENTITY, DataSource, Normalization
from edgeprune.results import LatencyComparison
from edgeprune.tasks.classification import Classification, scores
from edgeprune.tasks.intervals import Luck, luck
from edgeprune.tasks.outputs import described, leaves
from edgeprune.tasks.task import Outcomes, Task, joined, mean_share

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

_BATCH = 256
# What a file may take that comes from anywhere.
_SPARE_BYTES = 768 * 2**20
_COPIES = 8  # of its weights
_ACTIVATIONS = 512  # times the bytes of a batch
_FLOAT_BYTES = 4
_SECONDS = 10.0  # of a run on one sample
_SLOWER = 20  # times the time for one sample, for each of a batch
ORT_SUFFIX = ".ort"


@dataclass(frozen=True, slots=True, eq=False)
class NetworkFile:
    """One file that is ready to run, and what makes its input from raw data: a normalisation, or preprocess.onnx.

    `structure` is how its outputs belong together, as for `Answering`.
    """

    path: Path
    session: InferenceSession
    size_bytes: int
    bounds: ort.Bounds
    normalization: Normalization | None  # None: the file does not say
    structure: Any = None
    preprocess: InferenceSession | None = None
    byte_scale: float | None = None

    def inputs(self, raw: torch.Tensor) -> np.ndarray:
        """The file's input for raw `(batch, ...)`."""
        handed = raw.numpy() if self.byte_scale is None else raw_bytes(raw.numpy(), self.byte_scale)
        if self.preprocess is not None:
            return ort.run(self.preprocess, handed, self.bounds)
        if self.byte_scale is not None:
            return handed
        return np.ascontiguousarray(normalize(raw, self.normalization or IDENTITY).numpy())

    def answers(self, raw: torch.Tensor) -> Any:
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


def stated_in(path: Path) -> dict[str, str]:
    """What a network's file says of itself; raises InputError where it is none."""
    if path.suffix == ORT_SUFFIX:
        return dict(_loaded(path).get_modelmeta().custom_metadata_map)
    return {entry.key: entry.value for entry in parse_onnx(path).metadata_props}


def with_classes_of_file(data: DataSource, path: Path) -> DataSource:
    """The data with the class numbers of a network's file, by the names that it states or the number of its outputs."""
    if data.targets.kind != "classes":
        return data
    stated = stated_in(path).get("edgeprune.classes", "[]")
    expected = f"{path}: edgeprune.classes: expected a list of names"
    names = parse_json(stated, expected)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{expected}, got {shown(stated, 80)}")
    return with_classes_of(data, names, _width(path))


def _loaded(path: Path) -> InferenceSession:
    """An .ort file, which tells of itself only once it is loaded."""
    return _readable(path, ort.Bounds(_SPARE_BYTES + _COPIES * _check_there(path), _SECONDS))


def _readable(path: Path, bounds: ort.Bounds) -> InferenceSession:
    """A session that tells its names and what the file says of itself; raises InputError where these are no text."""
    session = ort.session(path, bounds=bounds)
    try:
        _ = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
        _ = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected names and metadata in UTF-8, got other bytes") from error
    return session


def _width(path: Path) -> int | None:
    """How many numbers the outputs of a network hold for a sample, where that is all that they say."""
    if path.suffix == ORT_SUFFIX:
        sizes = [size for value in _loaded(path).get_outputs() for size in value.shape]
    else:
        graph = parse_onnx(path).graph
        sizes = [dim.dim_value for value in graph.output for dim in value.type.tensor_type.shape.dim]
    return sizes[1] if len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] else None


def opened(path: Path, data: DataSource, task: Task) -> NetworkFile:
    """A checked file, with the preprocessing that stands beside it where it takes only some of the features."""
    size_bytes = _check_file(path)
    bounds = _bounds(size_bytes, data)
    session = _readable(path, bounds)
    if isinstance(task, Classification):
        _check_outputs(path, session, len(data.classes))
    network = _fed(path, session, NetworkFile(path, session, size_bytes, bounds, None), data)
    return _tried(network, data, task)


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
    if stated is not None and not {len(stated.mean), len(stated.std)} <= {1, data.input_shape[0]}:
        raise InputError(
            f"{path}: edgeprune.normalization: expected 1 or {data.input_shape[0]} values, "
            f"got {len(stated.mean)} and {len(stated.std)}"
        )
    return replace(network, byte_scale=_byte_scale(path, session))


def trained_normalization(network: NetworkFile) -> Normalization | None:
    """What the network itself was trained with: where its file takes raw inputs, what is folded into it."""
    metadata = network.session.get_modelmeta().custom_metadata_map
    folded = metadata.get("edgeprune.folded_normalization")
    if folded is None:
        return network.normalization
    return normalization_in({"edgeprune.normalization": folded}, str(network.path))


def _bounds(size_bytes: int, data: DataSource) -> ort.Bounds:
    """What a network of this size may take while it is loaded and run on one sample.

    Weights are copied some times, and what layers give out is larger than what comes in.
    """
    batch_bytes = _batch_of(data) * int(np.prod(data.input_shape)) * _FLOAT_BYTES
    return ort.Bounds(_SPARE_BYTES + _COPIES * size_bytes + _ACTIVATIONS * batch_bytes, _SECONDS)


def _tried(network: NetworkFile, data: DataSource, task: Task) -> NetworkFile:
    """The network, once it has run on one sample and gives what the task takes; more samples may take as much longer.

    Raises:
        InputError: it does not run, or its outputs do not fit the task.
    """
    x, _ = next(batches(data.test, 1))
    start = time.perf_counter()
    outputs = network.answers(one_tensor(x, "validate"))
    seconds = _SECONDS + _SLOWER * _batch_of(data) * (time.perf_counter() - start)
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
    session = ort.session(beside, bounds=_bounds(_check_file(beside), data))
    takes, gives = _input_shape(beside, session), tuple(session.get_outputs()[0].shape[1:])
    if not _accepts(takes, data.input_shape):
        raise InputError(f"{beside}: expected an input {_show(data.input_shape)}, got {_show(takes)}")
    if not all(isinstance(size, int) for size in gives) or not _accepts(shape, gives):
        raise InputError(f"{beside}: expected an output {_show(shape)} as {path.name} takes, got {_show(gives)}")
    return session


def _check_file(path: Path) -> int:
    """Size in bytes of an ONNX file that refers to nothing outside its folder; raises InputError otherwise."""
    if path.suffix == ORT_SUFFIX:  # it holds all its weights
        return _check_there(path)
    proto = parse_onnx(path)
    size = path.stat().st_size
    folder = path.parent.resolve()
    for location in _external_locations(proto):
        try:
            target = (folder / location).resolve()
            is_file = target.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, a name that is too long, a ring of links
            raise InputError(f"{path}: expected the name of a file with weights, got {shown(location)}") from error
        if not target.is_relative_to(folder):
            raise InputError(f"{path}: expected weights in its own folder, got external data at {shown(location)}")
        if not is_file:
            raise InputError(f"{path}: expected its external data {shown(location)} beside it, got nothing there")
        size += target.stat().st_size
    return size


def _check_there(path: Path) -> int:
    """Size in bytes; raises InputError where there is no file."""
    if not path.is_file():
        raise InputError(f"{path}: expected an .ort file, got {'a folder' if path.is_dir() else 'nothing there'}")
    return path.stat().st_size


def _external_locations(proto: onnx.ModelProto) -> set[str]:
    """Where the tensors of a model lie that it does not hold itself."""
    entries = (entry for tensor in tensors_in(proto) for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _input_shape(path: Path, session: InferenceSession) -> tuple[int | None, ...]:
    """Shape without the batch of the only input, None where a size is free."""
    inputs = session.get_inputs()
    takes = "tensor(float)" if _byte_scale(path, session) is None else "tensor(uint8)"
    if len(inputs) != 1 or inputs[0].type != takes:
        got = ", ".join(f"{value.name} {value.type}" for value in inputs) or "none"
        expected = "float32" if takes == "tensor(float)" else "uint8"
        raise InputError(f"{path}: expected one {expected} input, got {got}")
    if not inputs[0].shape or isinstance(inputs[0].shape[0], int):
        raise InputError(f"{path}: expected a free batch as the first size of its input, got {inputs[0].shape}")
    return tuple(size if isinstance(size, int) else None for size in inputs[0].shape[1:])


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


# --- measure


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What both networks make of the test split.

    `outcomes` are those of the task; `difference` is the largest of any output, `agreement` the share of answers that
    are the same, None where they are no decisions. `luck` is the dense network's, of a classification.
    """

    outcomes: tuple[Outcomes, Outcomes]
    difference: float
    agreement: float | None
    luck: Luck | None


def run_both(dense: NetworkFile, slim: NetworkFile, data: DataSource, task: Task, progress: Progress) -> Compared:
    """Run both on the test split; where the task goes by a reference, that is the dense network.

    Raises:
        InputError: outputs or targets that do not fit the task or each other, or no samples.
    """
    outcomes: tuple[list[Outcomes], list[Outcomes]] = ([], [])
    classes: list[tuple[np.ndarray, np.ndarray]] = []
    agreed: list[tuple[float | None, int]] = []
    difference, done, total = 0.0, 0, len(data.test)  # type: ignore[arg-type]
    for x, raw in _test_batches(data):
        answers = dense.answers(x), slim.answers(x)
        targets = answers[0] if task.by_reference else task.targets(raw)
        for network, own, given in zip((dense, slim), outcomes, answers, strict=True):
            own.append(_outcomes(network, given, targets, task))
        difference = max(difference, _difference(slim, *answers))
        agreed.append((task.agrees(*answers), len(x)))
        if isinstance(task, Classification):
            classes.append((scores(answers[0]).argmax(axis=1), targets.numpy()))
        done += len(x)
        progress.advance(done, total)
    if not done:
        raise InputError(f"data {data.name}: expected samples in the test split, got none")
    guessed = luck(*map(np.concatenate, zip(*classes, strict=True))) if classes else None
    return Compared((joined(outcomes[0]), joined(outcomes[1])), difference, mean_share(agreed), guessed)


def _outcomes(network: NetworkFile, answers: Any, targets: Any, task: Task) -> Outcomes:
    try:
        return task.outcomes(answers, targets)
    except InputError as error:
        raise InputError(f"{network.path}: {error}") from error


def _difference(slim: NetworkFile, want: Any, got: Any) -> float:
    """The largest between any two outputs."""
    pairs = list(zip(leaves(want), leaves(got), strict=False))
    if len(leaves(want)) != len(leaves(got)) or any(a.shape != b.shape for (_, a), (_, b) in pairs):
        raise InputError(
            f"{slim.path}: expected outputs like those of the dense network, {described(want)}, got {described(got)}"
        )
    apart = [a - b if a.dtype.kind == "f" else a.astype(np.float64) - b for (_, a), (_, b) in pairs]
    return float(max((np.abs(part).max(initial=0.0) for part in apart), default=0.0))


def _test_batches(data: DataSource) -> Iterator[tuple[torch.Tensor, Any]]:
    return ((one_tensor(x, "validate"), y) for x, y in batches(data.test, _batch_of(data)))


def _batch_of(data: DataSource) -> int:
    """How many samples are run at a time."""
    elements = int(np.prod(data.input_shape))
    return max(1, min(_BATCH, 2**22 // max(1, elements)))


def latency_beside(  # noqa: PLR0913 - two files, their data and how to time them
    dense: NetworkFile,
    slim: NetworkFile,
    data: DataSource,
    *,
    batch_size: int,
    threads: int,
    runs: int,
    progress: Progress,
) -> LatencyComparison:
    """Time both on the same raw samples; preprocessing is not part of it."""
    x, _ = next(_test_batches(data))
    raw = x[np.arange(batch_size) % len(x)]
    return compare_latency(
        dense.path, slim.path, dense.inputs(raw), slim.inputs(raw), threads=threads, runs=runs, progress=progress
    )
