"""`edgeprune validate`: two files, compared in their runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeprune.commands.onnxfile import write_onnx
from edgeprune.data import open_data
from edgeprune.data.featuredims import along_recorded, said_of_dims, told_dims
from edgeprune.errors import InputError
from edgeprune.export.metadata import feature_dims_entry, task_in
from edgeprune.files import named_as
from edgeprune.formats.load import carries_network, load
from edgeprune.formats.normalizing import asked_normalization, check_inputs
from edgeprune.formats.trust import recorded_task
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.measure.chance import standing_of, standing_of_classes
from edgeprune.measure.filedims import recorded_dims
from edgeprune.measure.fixedbatch import stated_batch
from edgeprune.measure.foreign import stated_in
from edgeprune.measure.gated import gate_use, is_gated
from edgeprune.measure.keptids import check_ids, stated_vocabularies
from edgeprune.measure.namedfile import names_of_file, with_inputs_of_file
from edgeprune.measure.networkfile import NetworkFile, opened, trained_normalization, with_classes_of_file
from edgeprune.measure.validation import Compared, latency_beside, run_both
from edgeprune.progress import Passing, Progress, Silent
from edgeprune.records import IDENTITY, DataSource, Model, Normalization
from edgeprune.requests import ValidateRequest
from edgeprune.results import GateUse, LatencyComparison, ValidateRecord
from edgeprune.tasks.budget import RELATIVE, MaxDrop, drop_of, is_within
from edgeprune.tasks.classification import Classification, is_accuracy
from edgeprune.tasks.intervals import compare_accuracy
from edgeprune.tasks.registry import open_task, wanted_targets
from edgeprune.tasks.task import Task
from edgeprune.units import split_normalization
from edgeprune.usercode import running_user_code


@running_user_code()
def validate(request: ValidateRequest, progress: Progress | None = None) -> ValidateRecord:
    """Compare two files in onnxruntime: the task's metric, parity, size, latency.

    Raises:
        InputError: a file or the data is wrong or they do not fit each other.
    """
    told = progress or Silent()
    with _as_onnx(request, told) as (asked, told):
        spec = _task_spec(asked)
        wanted = wanted_targets(spec, names_of_file(Path(asked.dense)))
        return _validated(asked, spec, open_data(asked.data, wanted=wanted), told)


def validate_files(
    request: ValidateRequest,
    data: DataSource,
    *,
    progress: Progress | None = None,
) -> ValidateRecord:
    """Compare `request.dense` and `request.slim` on the whole test split of `data`.

    A slim file that takes only the kept features gets them from the `preprocess.onnx` in its folder.

    Args:
        request: the two files, the budgets, and how to time; `request.data` is not read.
        data: raw samples; their shape and targets must be the networks'.
        progress: told of the stages.

    Raises:
        InputError: a file is missing, malformed, points outside its folder or does not fit the data or the task; the
            metric has not the unit of the budget; the dense network is no better than guessing.
    """
    told = progress or Silent()
    with _as_onnx(request, told) as (asked, told):
        return _validated(asked, _task_spec(asked), data, told)


def _validated(request: ValidateRequest, spec: str | None, data: DataSource, told: Progress) -> ValidateRecord:
    dense_path = Path(request.dense)
    data = with_classes_of_file(with_inputs_of_file(data, dense_path), dense_path)
    task = open_task(spec, data)
    for path in (dense_path, Path(request.slim)):
        check_ids(path, data)
    limit = None if request.max_drop is None else drop_of(request.max_drop, task.metric)
    for note in (*data.notes, *_assumed(request, spec, task)):
        told.say(f"assumed: {note}")
    dense, slim = opened(Path(request.dense), data, task), opened(Path(request.slim), data, task)
    _check_batch(dense, slim, request.batch_size)
    dense, slim = _normalised(dense, slim, request, data, told)
    told.stage(f"{task.metric.name} on the test split")
    found = run_both(dense, slim, data, task, told)
    told_chance = None if request.allow_chance else _chance(found, task)
    if told_chance is not None:
        what = "targets" if found.luck is None else "classes"
        raise InputError(
            f"{dense.path}: {told_chance} of data {data.name}; give --normalize as it was trained, and the {what} in "
            "the order of that training; --allow-chance goes on nevertheless"
        )
    told.stage("latency")
    latency, gate = _timed(dense, slim, data, request, told)
    classes = is_accuracy(task)
    record = ValidateRecord(
        accuracy=compare_accuracy(*map(np.asarray, found.outcomes)) if classes else None,
        parity=found.difference,
        dense_bytes=dense.size_bytes,
        slim_bytes=slim.size_bytes,
        latency=latency,
        comparison=None if classes else task.compare(*found.outcomes),
        agreement=None if classes else found.agreement,
        gate=gate,
    )
    return _judged(record, request, limit)


def _chance(found: Compared, task: Task) -> str | None:
    """That the dense network is no better than guessing; None where it is, or nobody can say."""
    outcomes, luck = found.outcomes[0], found.luck
    standing = standing_of(task, outcomes) if luck is None else standing_of_classes(luck)
    return standing.told if standing is not None and standing.is_chance else None


def _check_batch(dense: NetworkFile, slim: NetworkFile, size: int) -> None:
    """Raise InputError for a batch that a file does not take: of several, where the width is picked for each sample."""
    for network in (dense, slim):
        stated = stated_batch(network.session)
        if stated is not None and stated != size:
            raise InputError(f"{network.path}: --batch-size: expected {stated}, as the file states, got {size}")
    if is_gated(slim) and size > 1:
        raise InputError(f"{slim.path}: --batch-size: expected 1, as the width is picked for each sample, got {size}")


def _timed(
    dense: NetworkFile, slim: NetworkFile, data: DataSource, request: ValidateRequest, told: Progress
) -> tuple[LatencyComparison, GateUse | None]:
    """Both side by side; where the width is picked by the sample, over samples of the test split."""
    threads, runs = request.threads, request.runs
    if not is_gated(slim):
        size = request.batch_size
        return latency_beside(dense, slim, data, batch_size=size, threads=threads, runs=runs, progress=told), None
    return gate_use(dense, slim, data, threads=threads, runs=runs, progress=told)


@contextmanager
def _as_onnx(request: ValidateRequest, told: Progress) -> Iterator[tuple[ValidateRequest, Progress]]:
    """The request with ONNX files in the place of programs, each exported and checked beside PyTorch, and who is told.

    All is told by the names of the files that were given.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeprune-")))
        paths, given_of = {name: str(getattr(request, name)) for name in ("dense", "slim")}, {}
        for name, path in paths.items():
            given = Path(path)
            if not carries_network(given):
                continue
            told.stage(f"export {given.name}")
            model = load(str(given))
            paths[name] = str(folder / f"{name}.onnx")
            write_onnx(model.program, model.info, paths[name], beside=_told_beside(model, request.normalize))
            given_of[paths[name]] = path
            stack.enter_context(named_as(given, Path(paths[name])))
            if model.info.task is not None and request.task is None:
                spec = recorded_task(model.info.task, str(given), request.trust_recorded)
                request = replace(request, task=spec)
        yield replace(request, dense=paths["dense"], slim=paths["slim"]), _AsGiven(told, given_of)


class _AsGiven(Passing):
    """Tells of the files that were given in the place of those that stand for them."""

    def __init__(self, progress: Progress, given_of: Mapping[str, str]) -> None:
        super().__init__(progress)
        self._given_of = given_of

    def say(self, message: str) -> None:
        """A line that stays."""
        for path, given in self._given_of.items():
            message = message.replace(path, given)
        super().say(message)


def _told_beside(model: Model, asked: str | None) -> dict[str, str]:
    """What features.json would say beside the file of a program."""
    return stated_vocabularies(kept_vocabularies(model.program)) | _dims_of(model, asked)


def _dims_of(model: Model, asked: str | None) -> dict[str, str]:
    """Along which dims a program tells its features apart, where its file does not say what they are scaled by."""
    if asked is None or not _asks_data(asked) or model.info.normalization is not None:
        return {}
    return feature_dims_entry({name: dim for name, dim in told_dims(model.program).items() if dim is not None})


def _task_spec(request: ValidateRequest) -> str | None:
    """The task asked for, else the one that a file states; None leaves it to the targets of the data."""
    if request.task is not None:
        return request.task
    stated = (task_in(stated_in(Path(path)), path) for path in (request.dense, request.slim))
    return next((recorded_task(spec, request.slim, False) for spec in stated if spec is not None), None)


def _assumed(request: ValidateRequest, spec: str | None, task: Task) -> tuple[str, ...]:
    """What nobody asked for, of another task than a classification."""
    if request.task is not None or (isinstance(task, Classification) and spec in (None, "classification")):
        return ()
    return (f"--task {spec} (as the files say)",) if spec else (f"--task {task.name}, as the targets are",)


def _normalised(
    dense: NetworkFile, slim: NetworkFile, request: ValidateRequest, data: DataSource, progress: Progress
) -> tuple[NetworkFile, NetworkFile]:
    """Both with a normalisation, and told where the file does not say: as asked, as the other file has it, or none."""
    if "weights" in (request.normalize, *split_normalization(request.normalize or "").values()):
        raise InputError("--normalize: expected none, data or numbers, as an ONNX file names no weights; got weights")
    asked, why = _stated(dense, slim, data)
    if request.normalize is not None:
        data, files = _along_recorded(dense, slim, request.normalize, data)
        asked = asked_normalization(request.normalize, data, None, data.inputs, asked)
        why = f"--normalize {request.normalize}"
        check_inputs(asked, data.input_shape, data)
        for text in said_of_dims(data, files) if _asks_data(request.normalize) else ():
            progress.say(f"assumed: {text}")
    both = []
    for network in (dense, slim):
        if not network.is_told:
            progress.say(f"{network.path}: states no normalisation; taken: {_in_words(asked)} ({why})")
            network = replace(network, normalization=asked)
        both.append(network)
    return both[0], both[1]


def _asks_data(asked: str) -> bool:
    return "data" in (asked, *split_normalization(asked).values())


def _along_recorded(
    dense: NetworkFile, slim: NetworkFile, asked: str, data: DataSource
) -> tuple[DataSource, dict[str, str]]:
    """The data measured along the dims of their features as one of the files records them, and which file that is."""
    if not _asks_data(asked):
        return data, {}
    found = recorded_dims(slim, data) | recorded_dims(dense, data)
    files = {name: where for name, (_, where) in found.items()}
    return along_recorded(data, {name: dim for name, (dim, _) in found.items()}), files


def _stated(dense: NetworkFile, slim: NetworkFile, data: DataSource) -> tuple[Normalization, str]:
    """What the data or one of the files says, and which."""
    if data.states_normalization:
        return data.normalization, f"as data {data.name} says"
    asked, why = IDENTITY, "none; inputs as the data hold them"
    for network in (dense, slim):
        stated = trained_normalization(network)
        if stated is not None:
            asked, why = stated, f"as {network.path} says"
    return asked, why


def _in_words(asked: Normalization) -> str:
    """E.g. "mean 0.5, std 2", of inputs by name "table mean 3, std 2 and age mean 50, std 9"."""
    if asked.inputs:
        return " and ".join(f"{name} {_in_words(own)}" for name, own in asked.inputs)
    return f"mean {_short(asked.mean)}, std {_short(asked.std)}"


def _short(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")


def _judged(record: ValidateRecord, request: ValidateRequest, limit: MaxDrop | None) -> ValidateRecord:
    """The record with a sentence for every budget that was missed."""
    failures = []
    found, ratio = record.compared, record.latency.ratio
    metric = found.metric
    most = None if limit is None else limit.limit(metric, found.dense)
    if limit is not None and most is not None and not is_within(found.drop, most):
        share = f"{limit} of the dense network's, " if limit.unit == RELATIVE else ""
        asked = f"{share}{most:.6g} {metric.unit}".rstrip()
        failures.append(f"{metric.name} drop: at most {asked} asked, got {metric.number(found.drop)}")
    if request.max_latency_ratio is not None and ratio > request.max_latency_ratio:
        failures.append(f"latency: at most {request.max_latency_ratio:g} of the dense time asked, got {ratio:.2f}")
    return replace(record, failures=tuple(failures))
