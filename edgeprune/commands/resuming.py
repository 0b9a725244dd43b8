"""From a request to train to its files: what is there already, and whether it belongs to this training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.files import check_new
from edgeprune.formats.info import info_to_dict
from edgeprune.formats.load import load
from edgeprune.processes import is_main, n_local_processes
from edgeprune.progress import Progress
from edgeprune.records import DataSource, Model, ModelInfo
from edgeprune.requests import TrainRequest
from edgeprune.training import StateFile
from edgeprune.training.state import different, identity

_HOW_IT_RAN = ("threads", "workers", "device")


def state_path(request: TrainRequest) -> Path:
    """Where the state of an unfinished training lies: beside the checkpoint that it is to become."""
    return Path(f"{request.out}.training")


def state_file(request: TrainRequest, data: DataSource) -> StateFile:
    """The state of this training."""
    whose = identity(request.arch, request.data, data, request.settings, request.task)
    return StateFile(state_path(request), whose, request.resume)


@contextmanager
def interruptible(state: StateFile, told: Progress) -> Iterator[None]:
    """Where the user stops the training inside, say what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        if is_main() and state.path.exists():
            told.say(f"{state.path} holds the state after the last whole epoch; --resume goes on with it")
        raise


def check_places(request: TrainRequest, told: Progress) -> None:
    """Refuse early what is in the way; where nothing is there to be resumed, say so.

    Raises:
        InputError: a checkpoint, or an unfinished training, that neither `resume` nor `force` speaks of.
    """
    state = state_path(request)
    unfinished, done = os.path.lexists(state), is_done(request)
    if unfinished and not request.resume and not request.force:
        raise InputError(
            f"{state}: expected no earlier training, got the state of an unfinished one; --resume goes on with it, "
            "--force starts afresh"
        )
    if done:
        return
    # A state is kept only for a place that was free or was to be replaced.
    check_new(request.out, request.force or (request.resume and unfinished), "file")
    if request.resume and not unfinished:
        told.say(f"assumed: a new training, as there is no {state} to resume")


def is_done(request: TrainRequest) -> bool:
    """Whether nothing is left to resume: the checkpoint is there, and no state that would become it."""
    wanted = request.resume and not request.force
    return wanted and not os.path.lexists(state_path(request)) and os.path.lexists(request.out)


def check_same(request: TrainRequest, info: ModelInfo) -> Model:
    """The network at the output place; InputError unless it was made by the training that is asked for."""
    model = load(request.out)
    found = different(_made_by(info), _made_by(model.info))
    if found:
        raise InputError(f"{request.out}: this is the network of another training; {found}; --force replaces it")
    return model


def _made_by(info: ModelInfo) -> Mapping[str, Any]:
    fields = info_to_dict(info)
    training = fields.pop("training") or {}
    return {**fields, **{name: value for name, value in training.items() if name not in _HOW_IT_RAN}}


def own_cores() -> int | None:
    """This process's part of the cores, where several share a machine; None where it has them all."""
    n_local = n_local_processes()
    return max(1, (os.cpu_count() or 1) // n_local) if n_local > 1 else None
