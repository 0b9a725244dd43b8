"""`edgeprune federate`: an architecture and a data set, shared out over clients, become a checkpoint as `train` writes.

Server and clients are simulated in this process; `integrations/flower.py` runs the same ones apart.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from edgeprune.commands.resolve import threads_of
from edgeprune.commands.resuming import own_cores
from edgeprune.commands.train import begun, beside_of, zero_share
from edgeprune.cost.macs import count_parameters
from edgeprune.data.capturing import captured
from edgeprune.errors import InputError
from edgeprune.federated.masks import initial
from edgeprune.federated.simulation import AClient, Rounds, make_clients, simulate
from edgeprune.files import check_new
from edgeprune.formats.save import save_checkpoint
from edgeprune.progress import Progress, Silent
from edgeprune.records import ModelInfo
from edgeprune.requests import FederateRequest
from edgeprune.results import FederateRecord, RoundRecord
from edgeprune.settings import FederatedSettings
from edgeprune.tasks.weights import with_class_weights
from edgeprune.training import Judge, layer_zeros, threads_set
from edgeprune.usercode import running_user_code

_OWN = {"arch", "data", "out", "task", "normalize", "class-weights", "threads", "force"}


@running_user_code()
def federate(
    request: FederateRequest, progress: Progress | None = None, replaced: Mapping[int, AClient] | None = None
) -> FederateRecord:
    """Train a network on clients that keep their data, and write its checkpoint.

    Args:
        replaced: what takes the place of some clients, by their numbers.

    Raises:
        InputError: a setting, the architecture, the data or the output place is wrong.
        TrainingError: no client's update could be used in any round.
    """
    told, start = progress or Silent(), time.perf_counter()
    rounds, info, threads = prepared_rounds(request, told)
    with threads_set(threads):
        like = initial(rounds.module, request.settings.sparsity, request.settings.seed)
        clients: dict[int, AClient] = {**make_clients(rounds, like), **(replaced or {})}
        told.stage(f"train {request.arch} on {len(clients)} clients")
        _, records = simulate(rounds, clients)
        return finished(request, rounds, info, records, start)


def prepared_rounds(request: FederateRequest, told: Progress) -> tuple[Rounds, ModelInfo, int | None]:
    """What the server begins with, what the checkpoint will say, and the CPU threads.

    Raises:
        InputError: a setting, the architecture, the data or the output place is wrong.
    """
    request.settings.check()
    asked = request.as_training
    asked = replace(asked, task=with_class_weights(asked.task, asked.class_weights))
    check_new(request.out, request.force, "file")
    model, program, data, task, info = begun(asked)
    settings, assumed = request.settings.fitted(len(data.train))  # type: ignore[arg-type]
    for note in (*data.notes, *assumed):
        told.say(f"assumed: {note}")
    threads = threads_of(request.threads, program).training or own_cores()
    # How it was trained is nothing that finetuning could go by.
    info = replace(info, training=None)
    return Rounds(model, data, Judge(task, data.normalization), settings, told), info, threads


def finished(
    request: FederateRequest, rounds: Rounds, info: ModelInfo, records: tuple[RoundRecord, ...], start: float
) -> FederateRecord:
    """Write the checkpoint of the network that the rounds ended with, and measure it; `start` is when they began."""
    task = rounds.judge.task
    program = captured(rounds.module, rounds.data)
    module = program.module()
    val, test = (rounds.judge.evaluation(module, split) for split in (rounds.data.val, rounds.data.test))
    save_checkpoint(request.out, program, info)
    layers = layer_zeros(module)
    return FederateRecord(
        out=request.out,
        arch=request.arch,
        data=request.data,
        params=count_parameters(program),
        settings=rounds.settings,
        rounds=records,
        val_value=val.value,
        test_value=test.value,
        seconds=time.perf_counter() - start,
        zero_share=zero_share(layers),
        layers=layers,
        metric=task.metric,
        beside=beside_of(task, test),
        task=request.task,
    )


def request_of(config: Mapping[str, Any], beside: Collection[str] = ()) -> FederateRequest:
    """What a run config asks for: the names are those of the options of `edgeprune federate`, but for those `beside`.

    Raises:
        InputError: another name, none of `arch`, `data` or `out`, or a setting out of its range.
    """
    kinds = {field.name.replace("_", "-"): field.name for field in fields(FederatedSettings)}
    known = {*kinds, *_OWN, *beside}
    unknown, missing = set(config) - known, {"arch", "data", "out"} - set(config)
    if unknown or missing:
        got = f"no {min(missing)}" if missing else min(unknown)
        raise InputError(f"run config: expected {', '.join(sorted(known))}, got {got}")
    settings = FederatedSettings(**{kinds[name]: value for name, value in config.items() if name in kinds})
    settings.check()
    own = {name.replace("-", "_"): value for name, value in config.items() if name in _OWN}
    return FederateRequest(settings=settings, **own)
