"""`edgeprune train`: an architecture and a data set become a checkpoint, which says how it was made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from edgeprune.commands.resolve import threads_for
from edgeprune.commands.resuming import check_places, check_same, interruptible, is_done, own_cores, state_file
from edgeprune.cost.macs import count_parameters
from edgeprune.data import check_fits, open_data
from edgeprune.errors import InputError
from edgeprune.formats.architectures import build
from edgeprune.formats.normalizing import asked_normalization, check_width
from edgeprune.formats.pt2 import write_program
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.capture import Program
from edgeprune.graph.single import capture_single
from edgeprune.processes import is_main
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, ModelInfo
from edgeprune.requests import TrainRequest
from edgeprune.results import EpochRecord, LayerZeros, TrainRecord
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import check_logits, n_outputs
from edgeprune.training import Team, evaluate, fit, layer_zeros, threads_set
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
