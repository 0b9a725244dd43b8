"""`edgeprune train`: an architecture and a data set become a checkpoint, which says how it was made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from edgeprune.commands.resolve import threads_of
from edgeprune.commands.resuming import check_places, check_same, interruptible, is_done, own_cores, state_file
from edgeprune.commands.weighing import weighing
from edgeprune.cost.macs import count_parameters
from edgeprune.data import check_fits, open_data
from edgeprune.data.capturing import captured, captured_of_ids
from edgeprune.data.featuredims import said_of_dims
from edgeprune.data.fitting import by_name, with_inputs_of, with_stated_inputs
from edgeprune.errors import CaptureError, InputError
from edgeprune.formats.architectures import build
from edgeprune.formats.normalizing import asked_normalization, check_inputs
from edgeprune.formats.pt2 import write_program
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.capture import Program
from edgeprune.graph.templates import Mixture
from edgeprune.methods import Method
from edgeprune.methods.shared_weights import SharedTemplates
from edgeprune.processes import is_main
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, Evaluation, Figure, Metric, ModelInfo, Templates
from edgeprune.requests import TrainRequest
from edgeprune.results import EpochRecord, LayerZeros, TrainRecord
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import Classification, check_logits, n_outputs
from edgeprune.tasks.registry import open_task, wanted_targets
from edgeprune.tasks.task import Task
from edgeprune.tasks.weights import with_class_weights
from edgeprune.training import Judge, Team, evaluate, fit, layer_zeros, threads_set
from edgeprune.usercode import running_user_code


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
    request = replace(request, task=with_class_weights(request.task, request.class_weights))
    if is_main():
        check_places(request, told)
    model, program, data, task, info = begun(request)
    settings = replace(request.settings, threads=threads_of(request.settings.threads, program).training or own_cores())
    team, state = Team(settings), state_file(request, data)
    with threads_set(settings.threads):
        if team.any(is_main() and is_done(request)):
            return replace(_done_before(request, info, data, task, team, told), seconds=time.perf_counter() - start)
        if team.is_main:
            for assumed in _assumed(request, data, task, settings):
                told.say(f"assumed: {assumed}")
        told.stage(f"train {request.arch}")
        methods: list[Method] = []
        with interruptible(state, told):
            epochs = fit(
                model, data, data.normalization, settings, told, checkpoint=state, task=task, finished=methods.append
            )
        program = captured(model, data)
        module = program.module()
        val, test = (
            evaluate(module, split, data.normalization, task, workers=settings.workers, team=team)
            for split in (data.val, data.test)
        )
    if team.is_main:
        save_checkpoint(request.out, program, info, _templates(methods[0], program, told))
        state.remove()
    team.disband()
    layers = layer_zeros(module)
    return TrainRecord(
        out=request.out,
        arch=request.arch,
        data=request.data,
        params=count_parameters(program),
        epochs=epochs,
        best_epoch=_kept_epoch(epochs, request.settings, task.metric),
        val_value=val.value,
        test_value=test.value,
        seconds=time.perf_counter() - start,
        zero_share=zero_share(layers),
        layers=layers,
        metric=task.metric,
        beside=beside_of(task, test),
        task=request.task,
    )


def begun(request: TrainRequest) -> tuple[nn.Module, Program, DataSource, Task, ModelInfo]:
    """What a training begins with: the network, its program, the data, the task and what the checkpoint will say.

    Raises:
        InputError: the architecture or the data are wrong, or do not fit each other or the task.
    """
    with weighing(request.class_weights, request.data):
        data = _opened(request)
        task = _task(request, data)
    torch.manual_seed(request.settings.seed)
    model = build(request.arch)
    program = _captured(model, request, data)
    data = _normalised(with_inputs_of(data, program), request)
    _check_task(model, program, data, task)
    info = _info(request, data)
    check_fits(data, info, n_outputs(program))
    return model, program, data, task, info


def _templates(method: Method, program: Program, told: Progress) -> tuple[Templates, ...]:
    """What weights of the program are mixtures of, if any are; says how many numbers that takes."""
    shared = method.templates if isinstance(method, SharedTemplates) else ()
    shapes = {name: tuple(tensor.shape) for name, tensor in program.state_dict.items()}
    found = []
    for own in shared:
        used = {name: tensor for name, tensor in own.coefficients.items() if name in shapes}  # a layer may be unused
        if used:
            found.append(Templates(own.templates, used))
            told.say(f"shared: {Mixture.told(found[-1], shapes)}")
    if found:
        told.say("edgeprune export --onnx writes the small file of these templates, beside the plain one")
    return tuple(found)


def _opened(request: TrainRequest) -> DataSource:
    """The data, their inputs as `--input` has them where it says."""
    names = tuple(info.name for info in request.inputs or ())
    data = open_data(request.data, wanted=wanted_targets(request.task, names))
    if not request.inputs:
        return data
    data = data if data.inputs or len(names) > 1 else by_name(data, names[0])
    return with_stated_inputs(data, request.inputs)


def _info(request: TrainRequest, data: DataSource) -> ModelInfo:
    return ModelInfo(
        input_shape=data.input_shape,
        arch=request.arch,
        classes=data.classes,
        normalization=data.normalization,
        data=request.data,
        feature_names=data.feature_names,
        input_feature_names=data.input_feature_names,
        training=request.settings,
        task=request.task,
    )


def _assumed(request: TrainRequest, data: DataSource, task: Task, settings: TrainSettings) -> tuple[str, ...]:
    """What was decided where the user said nothing."""
    default = request.task is None and data.targets.kind != "classes"
    return (
        *data.notes,
        *said_of_dims(data),
        *((f"--task {task.name}, as the targets are",) if default else ()),
        *(f"--{name.replace('_', '-')} {value}" for name, value in settings.assumed.items()),
    )


def _task(request: TrainRequest, data: DataSource) -> Task:
    """The task that is trained for.

    Raises:
        InputError: as `open_task`, or one whose targets are the answers of a network, of which there is none.
    """
    task = open_task(request.task, data)
    if task.by_reference:
        got = "none" if data.targets.kind == "none" else f"the task {task.name}, which is to answer as a network does"
        raise InputError(f"data {data.name}: expected targets to train for, got {got}")
    return task


def beside_of(task: Task, test: Evaluation) -> tuple[Figure, ...]:
    """The task's further figures."""
    return tuple(Figure(name, value) for name, value in task.beside(test.outcomes).items())


def _normalised(data: DataSource, request: TrainRequest) -> DataSource:
    """The data with the normalisation that the network is trained on, which its checkpoint records."""
    normalization = asked_normalization(request.normalize, data, request.arch, data.inputs, data.normalization)
    check_inputs(normalization, data.input_shape, data)
    return replace(data, normalization=normalization)


def zero_share(layers: Sequence[LayerZeros]) -> float:
    """The share of all weights that is exactly zero."""
    return sum(layer.zeros for layer in layers) / max(1, sum(layer.size for layer in layers))


def _kept_epoch(epochs: Sequence[EpochRecord], settings: TrainSettings, metric: Metric) -> int:
    """The epoch whose weights `fit` ends with; 0 where there are none."""
    if not epochs or settings.keeps_last:
        return len(epochs)
    sign = 1 if metric.higher_is_better else -1
    return max(epochs, key=lambda record: sign * record.val_value).epoch


def _captured(model: nn.Module, request: TrainRequest, data: DataSource) -> Program:
    """The program of the network on the data's inputs."""
    try:
        return captured(model, data)
    except InputError as error:
        if not data.inputs:
            with suppress(InputError):  # what it says of floats tells more
                return captured_of_ids(model, data)
        shape = ", ".join(f"{info.name} {info.shape}" for info in data.inputs) or str(tuple(data.input_shape))
        told = error.fact if isinstance(error, CaptureError) else error  # how else to capture it is no choice here
        raise type(error)(f"{request.arch} on inputs {shape} of data {data.name}: {told}") from error


def _check_task(model: nn.Module, program: Program, data: DataSource, task: Task) -> None:
    """Raise InputError where the network does not give out what the task takes, or cannot be written down."""
    if isinstance(task, Classification):
        check_logits(program, data)
    else:
        Judge(task, data.normalization).check(model, data)
    write_program(program, {}, with_weights=False)  # what cannot be written down is found before the training


def _done_before(  # noqa: PLR0913 - what was asked, for what, and who is told
    request: TrainRequest, info: ModelInfo, data: DataSource, task: Task, team: Team, told: Progress
) -> TrainRecord:
    """What came of a training that is to be resumed but is done; the main process measures it for all."""
    figures = torch.zeros(3, dtype=torch.float64)
    layers: tuple[LayerZeros, ...] = ()
    beside: tuple[Figure, ...] = ()
    if team.is_main:
        program = check_same(request, info).program
        told.say(f"{request.out}: this training is done; nothing is left to resume")
        module = program.module()
        layers = layer_zeros(module)
        found = [evaluate(module, split, data.normalization, task) for split in (data.val, data.test)]
        beside = beside_of(task, found[1])
        figures = torch.tensor([count_parameters(program), *(one.value for one in found)], dtype=torch.float64)
    params, val, test = team.summed(figures).tolist()
    team.disband()
    out, arch, spec = request.out, request.arch, request.data
    zeros = zero_share(layers)
    shown = TrainRecord(out, arch, spec, int(params), (), 0, val, test, 0.0, zeros, layers, task.metric, beside)
    return replace(shown, task=request.task)
