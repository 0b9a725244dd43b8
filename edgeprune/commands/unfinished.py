"""What is left of a run of `compress` that was stopped: where it lies, and whether it belongs to what is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.commands.resolve import model_and_data
from edgeprune.data import read
from edgeprune.data.ranks import check_same
from edgeprune.errors import InputError
from edgeprune.files import check_new
from edgeprune.formats.digests import update_with
from edgeprune.formats.info import info_to_dict
from edgeprune.journal.place import Place
from edgeprune.progress import Progress
from edgeprune.reading import read_file
from edgeprune.records import DataSource, Model
from edgeprune.requests import CompressRequest
from edgeprune.results import RunRecord
from edgeprune.runrecord import run_from_json
from edgeprune.training import Team
from edgeprune.training.state import different, expected_got
from edgeprune.versions import versions

# How the run is written and spoken of, and what lets files be opened: no result depends on it.
_FREE = ("out", "force", "resume", "command", "unsafe_pickle", "trust_recorded", "threads")
_FILES = (
    "plan", "device", "finetune", "evaluate", "arch", "task", "feature_groups", "feature_price", "input_features",
    "vocabularies", "class_weights",
)  # fmt: skip
_VERSIONS = ("edgeprune", "torch", "numpy", "scipy")
_LOOKED = 16  # samples of a split
SUFFIX = ".compressing"
_TYPED = {
    "leave": "--keep-layer", "layer_ratios": "--layer-ratio", "appliable": "--keep-equal-chunks", "inputs": "--input",
    "vocabularies": "--input-features", "unknown_ids": "--unknown-id", "distill_features": "--distill features",
}  # fmt: skip
_OPTIONS = frozenset(one.name for one in fields(CompressRequest)) - {"model", "command"}


def place_of(out: Path) -> Place:
    """Where the state of an unfinished run lies: beside the folder that it is to become."""
    return Place(Path(f"{out}{SUFFIX}"), kept_and_asked)


def check_place(request: CompressRequest, out: Path, told: Progress) -> None:
    """Refuse early what is in the way; where nothing is there to be resumed, say so.

    Raises:
        InputError: a folder, or an unfinished run, that neither `resume` nor `force` speaks of.
    """
    place = place_of(out)
    if place.is_there and not request.resume and not request.force:
        raise InputError(
            f"{place.path}: expected no earlier run, got the state of an unfinished one; --resume goes on with it, "
            "--force starts afresh"
        )
    # A state is kept only for a place that was free or was to be replaced.
    check_new(out, request.force or (request.resume and place.is_there), "folder")
    if request.resume and not place.is_there:
        told.say(f"assumed: a new run, as there is no {place.path} to resume")


def identity(request: CompressRequest, model: Model, data: DataSource | None, threads: int | None) -> dict[str, Any]:
    """What makes a run this one and no other, as plain values.

    Args:
        threads: those that it trains and computes with, None for all; sums come out otherwise with another number.
    """
    known = versions()
    return {
        **{f"version of {name}": known[name] for name in _VERSIONS if name in known},
        "processor": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads or torch.get_num_threads(),
        "network": model.sha256,
        "what the network's file says": _digest(json.dumps(info_to_dict(model.info), default=str, sort_keys=True)),
        "samples": None if data is None else _data_digest(data),
        **_options(request),
        **_digests_of_files(request),
    }


def shared_identity(team: Team, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run of several processes this one: with another number of them, sums come out otherwise."""
    n_ranks = team.share.n_ranks
    return {**asked, **({"processes": n_ranks} if n_ranks > 1 else {})}


def check_alike(team: Team, asked: Mapping[str, Any]) -> None:
    """Raise InputError, in all processes, where one of them has another network, other data, versions or options."""
    check_same(team, lambda: asked, "the network, data, versions and options of")


def done_before(request: CompressRequest, told: Progress) -> tuple[Path, RunRecord] | None:
    """The run that is to be resumed but is done; None where something is left to do.

    Raises:
        InputError: what is done is another run.
    """
    out = None if request.out is None else Path(request.out)
    if out is None or not request.resume or request.force or place_of(out).is_there or not os.path.lexists(out):
        return None
    file = out / "run.json"
    record = run_from_json(read_file(file, "run").decode(errors="replace"), str(file))
    model, _ = model_and_data(request, request.seed)
    asked = _options(request)  # what was not given is not in the record
    made = {**{name: record.asked.get(name) for name in asked}, "network": record.model.get("sha256")}
    found = different({**asked, "network": model.sha256}, made, kept_and_asked)
    if found:
        raise InputError(f"{out}: this is another run, which is done; {found}; --force replaces it")
    told.say(f"{out}: this run is done; nothing is left to resume")
    return out, record


def _options(request: CompressRequest) -> dict[str, Any]:
    """The options that results depend on, as JSON has them."""
    plain = json.loads(json.dumps(asdict(request), default=str))
    return {name: value for name, value in plain.items() if name not in _FREE}


def _digests_of_files(request: CompressRequest) -> dict[str, str]:
    """What the files hold that options name, by the option."""
    found: dict[str, str] = {}
    for option in _FILES:
        value = getattr(request, option)
        for text in value if isinstance(value, tuple) else (value,):
            path = _named_file(text)
            if path is not None:
                found[f"file of {option} ({path.name})"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _named_file(text: object) -> Path | None:
    """The file in an option: its value, or what stands before a `:`, or after a `=`."""
    if not isinstance(text, str):
        return None
    bare = text.partition("?")[0]
    for part in (text, bare, bare.rpartition(":")[0], text.partition("=")[2]):
        path = Path(os.path.expanduser(part))
        if part and path.is_file():
            return path
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _data_digest(data: DataSource) -> str:
    """A digest of the splits' sizes and of a few samples of each; those that are drawn at random do not count."""
    total = hashlib.sha256()
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        total.update(f"{name} {len(split)}".encode())
        with generators_kept():
            first, second = _samples_digest(split), _samples_digest(split)
        if first == second:
            total.update(first)
    return total.hexdigest()


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put back what a data set of the user's may draw from."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _samples_digest(split: Any) -> bytes:
    total = hashlib.sha256()
    index = torch.linspace(0, len(split) - 1, min(_LOOKED, len(split))).long()
    for inputs, targets in read(split, [index]) if len(index) else ():
        _update(total, inputs, "inputs")
        _update(total, targets, "targets")
    return total.digest()


def _update(total: Any, value: object, name: str) -> None:
    if isinstance(value, Tensor):
        update_with(total, name, value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        update_with(total, name, torch.from_numpy(np.ascontiguousarray(value)))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _update(total, value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            _update(total, part, f"{name}[{number}]")
    else:
        total.update(f"{name} {value if isinstance(value, (str, int, float)) else type(value).__name__}".encode())


def kept_and_asked(name: str, asked: str, kept: str) -> str:
    """What is said of an option that a kept run was given otherwise; of what no option says, what it is now and was."""
    option = _option_of(name)
    if option is None:
        return expected_got(name, asked, kept)
    kept, asked = ("nothing" if value == "None" else value for value in (kept, asked))
    return f"{option}: the kept run has {kept}, this command says {asked}"


def _option_of(name: str) -> str | None:
    """The option of `edgeprune compress` that a field of its request is typed as, `--keep-macs`; None where it is none.

    Parts of the recipe are options of their own: `recipe ema` is `--ema`.
    """
    inner = name.removeprefix("recipe ")
    if name not in _OPTIONS and inner == name:
        return None
    return _TYPED.get(name, f"--{inner.replace('_', '-')}")
