"""`edgeprune validate`: two files, compared in their runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.normalizing import asked_normalization, check_width
from edgeprune.measure.chance import chance_text
from edgeprune.measure.validation import (
    NetworkFile,
    latency_beside,
    opened,
    run_both,
    trained_normalization,
    with_classes_of_file,
)
from edgeprune.progress import Progress, Silent
from edgeprune.records import IDENTITY, DataSource
from edgeprune.requests import ValidateRequest
from edgeprune.results import ValidateRecord
from edgeprune.tasks.budget import is_within
from edgeprune.tasks.intervals import compare_accuracy, luck
from edgeprune.usercode import running_user_code


@running_user_code()
def validate(request: ValidateRequest, progress: Progress | None = None) -> ValidateRecord:
    """Compare two ONNX files in onnxruntime: accuracy, parity, size, latency.

    Raises:
        InputError: a file or the data is wrong or they do not fit each other.
    """
    return validate_files(request, open_data(request.data), progress=progress or Silent())


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
        data: raw samples; their shape and classes must be the networks'.
        progress: told of the stages.

    Raises:
        InputError: a file is missing, malformed, points outside its folder or does not fit the data; the dense network
            is no better than guessing.
    """
    told = progress or Silent()
    if data.inputs:
        names = ", ".join(info.name for info in data.inputs)
        raise InputError(
            f"data {data.name}: expected one input x, as validate runs files with one, got {names} by name"
        )
    if data.targets.kind != "classes":
        raise InputError(
            f"data {data.name}: expected class labels, as validate judges by accuracy, got targets of another task; "
            "compress compares both networks by its metric"
        )
    data = with_classes_of_file(data, Path(request.dense))
    for note in data.notes:
        told.say(f"assumed: {note}")
    dense, slim = _normalised(opened(Path(request.dense), data), opened(Path(request.slim), data), request, data, told)
    told.stage("accuracy on the test split")
    answers, labels, parity = run_both(dense, slim, data, told)
    found = luck(answers[0], labels)
    if found.is_chance and not request.allow_chance:
        raise InputError(
            f"{dense.path}: {chance_text(found, 'the network')} of data {data.name}; give --normalize as it was "
            "trained, and the classes in the order of that training; --allow-chance goes on nevertheless"
        )
    told.stage("latency")
    latency = latency_beside(
        dense,
        slim,
        data,
        batch_size=request.batch_size,
        threads=request.threads,
        runs=request.runs,
        progress=told,
    )
    record = ValidateRecord(
        accuracy=compare_accuracy(answers[0] == labels, answers[1] == labels),
        parity=parity,
        dense_bytes=dense.size_bytes,
        slim_bytes=slim.size_bytes,
        latency=latency,
        failures=(),
    )
    return _judged(record, request)


def _normalised(
    dense: NetworkFile, slim: NetworkFile, request: ValidateRequest, data: DataSource, progress: Progress
) -> tuple[NetworkFile, NetworkFile]:
    """Both with a normalisation, and told where the file does not say: as asked, as the other file has it, or none."""
    asked, why = IDENTITY, "none; inputs as the data hold them"
    if request.normalize == "weights":
        raise InputError("--normalize: expected none, data or numbers, as an ONNX file names no weights; got weights")
    if request.normalize is not None:
        asked, why = asked_normalization(request.normalize, data, None), f"--normalize {request.normalize}"
        check_width(asked, data.input_shape)
    elif data.states_normalization:
        asked, why = data.normalization, f"as data {data.name} says"
    else:
        for network in (dense, slim):
            stated = trained_normalization(network)
            if stated is not None:
                asked, why = stated, f"as {network.path} says"
    both = []
    for network in (dense, slim):
        if network.normalization is None and network.preprocess is None:
            taken = f"mean {_short(asked.mean)}, std {_short(asked.std)} ({why})"
            progress.say(f"{network.path}: states no normalisation; taken: {taken}")
            network = replace(network, normalization=asked)
        both.append(network)
    return both[0], both[1]


def _short(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")


def _judged(record: ValidateRecord, request: ValidateRequest) -> ValidateRecord:
    """The record with a sentence for every budget that was missed."""
    failures = []
    drop, ratio = record.accuracy.drop_points, record.latency.ratio
    if not is_within(drop, request.max_drop):
        failures.append(f"accuracy drop: at most {request.max_drop:g} points asked, got {drop:.2f}")
    if request.max_latency_ratio is not None and ratio > request.max_latency_ratio:
        failures.append(f"latency: at most {request.max_latency_ratio:g} of the dense time asked, got {ratio:.2f}")
    return replace(record, failures=tuple(failures))
