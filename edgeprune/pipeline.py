"""The commands as library functions; this module alone knows the order of the stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from edgeprune.commands.export import export_model
from edgeprune.commands.outcome import front_points, measured
from edgeprune.commands.preparing import (
    Job,
    check_logits,
    completed,
    n_outputs,
    own_device,
    prepare,
    threads_for,
)
from edgeprune.commands.resuming import check_places, check_same, interruptible, is_done, own_cores, state_file
from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.macs import count_parameters
from edgeprune.data import check_fits, open_data
from edgeprune.errors import InputError
from edgeprune.files import check_new, staged_folder, write_atomically
from edgeprune.formats.architectures import build, is_spec
from edgeprune.formats.load import capture_single, load, load_architecture
from edgeprune.formats.normalizing import asked_normalization, check_width
from edgeprune.formats.pt2 import write_program
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import analyze
from edgeprune.graph.inputs import feature_grids
from edgeprune.inspection.drawing import draw
from edgeprune.inspection.table import inspect_program
from edgeprune.measure.profiling import Timing
from edgeprune.measure.validation import validate_files
from edgeprune.processes import is_main
from edgeprune.progress import Progress, Silent
from edgeprune.records import (
    DataSource,
    EpochRecord,
    ExportRecord,
    InspectRecord,
    LayerZeros,
    Model,
    ModelInfo,
    ProfiledKind,
    ProfileRecord,
    RunRecord,
    TrainRecord,
    ValidateRecord,
)
from edgeprune.report.diagram import dot, svg
from edgeprune.requests import (
    CompressRequest,
    ExportRequest,
    InspectRequest,
    ProfileRequest,
    TrainRequest,
    ValidateRequest,
)
from edgeprune.runrecord import to_json
from edgeprune.search.candidate import Candidate
from edgeprune.search.crop import find_crop
from edgeprune.search.pareto import chosen
from edgeprune.settings import TrainSettings
from edgeprune.training import Team, evaluate, fit, layer_zeros, threads_set
from edgeprune.usercode import running_user_code

_LEAST = 0.2  # of the cost: the smallest of several networks, where nothing is said


# -- train ---------------------------------------------------------------------------------------------------------


@running_user_code()
def train(request: TrainRequest, progress: Progress | None = None) -> TrainRecord:
    """Train an architecture on a data set and write its checkpoint.

    The state after each epoch is kept beside it, until it is done. Processes that `torchrun` started together all call
    this with the same request; the main one alone writes and speaks.

    Raises:
        InputError: the architecture, the data or the output place is wrong, or what is to be resumed is another one.
        TrainingError: the loss became NaN or infinite.
    """
    told, start = progress or Silent(), time.perf_counter()
    request.settings.check()
    if is_main():
        check_places(request, told)
    data = _normalised(open_data(request.data), request)
    torch.manual_seed(request.settings.seed)
    model = build(request.arch)
    program = _captured(model, request, data)
    info = ModelInfo(
        input_shape=data.input_shape,
        arch=request.arch,
        classes=data.classes,
        normalization=data.normalization,
        data=request.data,
        feature_names=data.feature_names,
        training=request.settings,
    )
    check_fits(data, info, n_outputs(program))
    settings = replace(request.settings, threads=request.settings.threads or threads_for(program) or own_cores())
    team, state = Team(settings), state_file(request, data)
    with threads_set(settings.threads):
        if team.any(is_main() and is_done(request)):
            return replace(_done_before(request, info, data, team, told), seconds=time.perf_counter() - start)
        if team.is_main:
            for note in data.notes:
                told.say(f"assumed: {note}")
            for name, value in settings.assumed.items():
                told.say(f"assumed: --{name.replace('_', '-')} {value}")
        told.stage(f"train {request.arch}")
        with interruptible(state, told):
            epochs = fit(model, data, data.normalization, settings, told, checkpoint=state)
        program = capture_single(model, data.input_shape)
        module = program.module()
        val, test = (
            evaluate(module, split, data.normalization, workers=settings.workers, team=team).accuracy
            for split in (data.val, data.test)
        )
    if team.is_main:
        save_checkpoint(request.out, program, info)
        state.remove()
    team.disband()
    layers = layer_zeros(module)
    return TrainRecord(
        out=request.out,
        arch=request.arch,
        data=request.data,
        params=count_parameters(program),
        epochs=epochs,
        best_epoch=_kept_epoch(epochs, request.settings),
        val_accuracy=val,
        test_accuracy=test,
        seconds=time.perf_counter() - start,
        zero_share=_zero_share(layers),
        layers=layers,
    )


def _normalised(data: DataSource, request: TrainRequest) -> DataSource:
    """The data with the normalisation that the network is trained on, which its checkpoint records."""
    normalization = asked_normalization(request.normalize, data, request.arch)
    check_width(normalization, data.input_shape)
    return replace(data, normalization=normalization)


def _zero_share(layers: Sequence[LayerZeros]) -> float:
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.size for layer in layers))


def _kept_epoch(epochs: Sequence[EpochRecord], settings: TrainSettings) -> int:
    """The epoch whose weights `fit` ends with; 0 where there are none."""
    if not epochs or settings.is_sparse:
        return len(epochs)
    return max(epochs, key=lambda record: record.val_accuracy).epoch


def _captured(model: nn.Module, request: TrainRequest, data: DataSource) -> Program:
    """The program of the network on the data's inputs, which has one output with a score for each class."""
    try:
        program = capture_single(model, data.input_shape)
    except InputError as error:
        shape = tuple(data.input_shape)
        raise type(error)(f"{request.arch} on inputs {shape} of data {data.name}: {error}") from error
    check_logits(program, data)
    write_program(program, {}, with_weights=False)  # what cannot be written down is found before the training
    return program


def _done_before(request: TrainRequest, info: ModelInfo, data: DataSource, team: Team, told: Progress) -> TrainRecord:
    """What came of a training that is to be resumed but is done; the main process measures it for all."""
    figures = torch.zeros(3, dtype=torch.float64)
    layers: tuple[LayerZeros, ...] = ()
    if team.is_main:
        program = check_same(request, info).program
        told.say(f"{request.out}: this training is done; nothing is left to resume")
        module = program.module()
        layers = layer_zeros(module)
        accuracies = [evaluate(module, split, data.normalization).accuracy for split in (data.val, data.test)]
        figures = torch.tensor([count_parameters(program), *accuracies], dtype=torch.float64)
    params, val, test = team.summed(figures).tolist()
    team.disband()
    out, arch, spec = request.out, request.arch, request.data
    return TrainRecord(out, arch, spec, int(params), (), 0, val, test, 0.0, _zero_share(layers), layers)


# -- compress ------------------------------------------------------------------------------------------------------


@running_user_code()
def compress(request: CompressRequest, progress: Progress | None = None) -> tuple[Path, RunRecord]:
    """Prune a model to its budgets, finetune, prove, measure, and write the run folder; returns it and the record.

    Raises:
        InputError: the model, the data, an option or the output place is wrong; nothing is written.
        BudgetError: a budget cannot be met; says what stood in the way; nothing is written.
        ProofError, ParityError, TrainingError: a check failed; nothing is written.
    """
    from edgeprune.report.html import render  # matplotlib: a second that the other commands need not wait

    told, start = progress or Silent(), time.perf_counter()
    job = prepare(request, told)
    with staged_folder(job.out, request.force) as folder, threads_set(job.threads):
        found = _found(job)
        best = chosen(found, job.search.dense, request.max_drop)
        record = measured(job, best, told)
        if request.pareto is not None:
            record = replace(record, front=front_points(job, found, best, told))
        record = replace(record, advice=_advice(job, told), seconds=time.perf_counter() - start)
        info = completed(job.model.info, job.data, request.data) if job.data else job.model.info
        _save(folder, best, info)
        for point, candidate in zip(record.front, found, strict=False):
            (folder / point.folder).mkdir(parents=True)
            _save(folder / point.folder, candidate, info)
        write_atomically(folder / "run.json", to_json(record).encode())
        write_atomically(folder / "report.html", render(record).encode())
    return job.out, record


def _found(job: Job) -> list[Candidate]:
    """The network within the budgets, or several where they were asked for, from large to small."""
    if job.request.pareto is not None:
        return job.search.front(job.request.pareto, job.request.keep_macs or _LEAST)
    return [job.search.run() if job.plan is None else job.search.replay(job.plan)]


def _save(folder: Path, candidate: Candidate, info: ModelInfo) -> None:
    assert candidate.plan is not None
    save_program(folder / "slim.pt2", candidate.program, info)
    write_atomically(folder / "plan.json", candidate.plan.to_json().encode())


def _advice(job: Job, told: Progress) -> tuple[str, ...]:
    """What could be done beside: how images can be cropped whose pixels cannot go one by one."""
    if job.trainer is None or not job.search.budgets.prune_features or len(job.model.info.input_shape) != 3:
        return ()
    dims = {grid.dim for grid in feature_grids(job.search.graph.analysis).values()}
    if None in dims:
        return ()
    told.stage("look for a border that never matters")
    crop = find_crop(job.search.dense.program.frozen_module(), job.trainer.data, job.trainer.normalization)
    return () if crop is None else (str(crop),)


# -- export, validate, inspect ------------------------------------------------------------------------------------


@running_user_code()
def export(request: ExportRequest, progress: Progress | None = None) -> ExportRecord:
    """Write the files of every target that is asked for, each run in its runtime on real inputs.

    Raises:
        InputError: the model, the data or the output place is wrong, or a target cannot express it; nothing is written.
        ParityError: a file disagrees with PyTorch; nothing is left.
    """
    return export_model(request, progress or Silent())


@running_user_code()
def validate(request: ValidateRequest, progress: Progress | None = None) -> ValidateRecord:
    """Compare two ONNX files in onnxruntime: accuracy, parity, size, latency.

    Raises:
        InputError: a file or the data is wrong or they do not fit each other.
    """
    return validate_files(request, open_data(request.data), progress=progress or Silent())


@running_user_code()
def profile(request: ProfileRequest, progress: Progress | None = None) -> ProfileRecord:
    """Measure how long the layers of a network take on this machine at several widths, and write a device.json.

    Raises:
        InputError: the model, an option or the output place is wrong.
    """
    told, start = progress or Silent(), time.perf_counter()
    timing = Timing(request.threads, request.batch_size, request.runs, request.warmup)
    timing.check()
    check_new(request.out, request.force, "file")
    told.stage("load")
    program = _opened(request, told).program
    device = own_device(program, timing, told, request.fresh)
    write_atomically(request.out, device.to_json().encode())
    shapes = [shape for shape in layer_shapes(analyze(program)).values() if device.knows(shape)]
    total = sum(map(device.milliseconds, shapes))
    kinds = []
    for kind in dict.fromkeys(shape.kind for shape in shapes):
        own = [shape for shape in shapes if shape.kind == kind]
        ms = sum(map(device.milliseconds, own))
        kinds.append(ProfiledKind(kind, len(own), device.step(kind) or 1, ms, ms / total))
    return ProfileRecord(
        model=request.model,
        out=request.out,
        runtime=device.runtime,
        cpu=device.cpu,
        threads=device.threads,
        batch_size=device.batch,
        n_points=len(device.points),
        ms=total,
        kinds=tuple(kinds),
        seconds=time.perf_counter() - start,
        arch=request.model if _is_architecture(request) else request.arch,
    )


@running_user_code()
def inspect(request: InspectRequest, progress: Progress | None = None) -> InspectRecord:
    """The channel groups of a model, and why the rest is locked.

    Raises:
        InputError: the model is wrong.
    """
    told = progress or Silent()
    drawings = {path: render_as for path, render_as in ((request.dot, dot), (request.svg, svg)) if path is not None}
    for path in drawings:
        check_new(path, request.force, "file")
    told.stage("load")
    model = _opened(request, told)
    told.stage("analyse")
    found = inspect_program(model.program, request.model, request.attention)
    if drawings:
        picture = draw(found)
        for path, render_as in drawings.items():
            write_atomically(path, render_as(picture).encode())
    return replace(found.record, files=tuple(drawings))


def _is_architecture(request: InspectRequest | ProfileRequest) -> bool:
    """Whether an architecture is named in the place of a file."""
    return request.arch is None and is_spec(request.model) and not Path(request.model).exists()


def _opened(request: InspectRequest | ProfileRequest, told: Progress) -> Model:
    """The model in a file, or of an architecture by its name, with random weights."""
    asked = request if isinstance(request, InspectRequest) else InspectRequest(request.model)
    if _is_architecture(request):
        return load_architecture(request.model, request.input_shape, asked.dynamic_size, asked.module, asked.dynamic)
    model = load(
        request.model,
        arch=request.arch,
        input_shape=request.input_shape,
        unsafe_pickle=request.unsafe_pickle,
        dynamic_size=asked.dynamic_size,
        module=asked.module,
        dynamic=asked.dynamic,
        state_key=request.state_key,
        ignore_keys=request.ignore_keys,
    )
    for note in model.notes:
        told.say(f"assumed: {note}")
    return model
