"""The state of a training after an epoch, as a file from which it goes on as if it had never stopped."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune.errors import InputError
from edgeprune.files import write_atomically
from edgeprune.formats.load import unpack
from edgeprune.lines import one_line, shown
from edgeprune.reading import read_file
from edgeprune.records import DataSource, InputInfo, Normalization
from edgeprune.settings import TrainSettings

FORMAT = "edgeprune-training/1"
SUFFIX = ".training"
_CONTENTS = ("identity", "epoch", "weights", "optimizer", "method", "schedule", "scaler", "best", "records", "random")
# What a training may go on with otherwise: how it is run, and the learning rate, which is lowered where it diverged.
_FREE = ("threads", "workers", "device", "lr")
_MAX_NAMED = 3
_LARGEST = 2.0**63  # number that a training keeps


def identity(
    arch: str, spec: str, data: DataSource, settings: TrainSettings, task: str | None = None
) -> dict[str, Any]:
    """What makes a training this one and no other, as plain values.

    Args:
        arch: what builds the network.
        spec: the data as they were asked for; `data` is what was found there.
        task: what was asked for beside what the data call for.
    """
    plain = {name: value for name, value in settings.as_plain.items() if name not in _FREE}
    sizes = {f"{name} samples": len(getattr(data, name)) for name in ("train", "val", "test")}
    facts = {
        "input shape": list(data.input_shape),
        "classes": list(data.classes),
        "normalisation": _numbers(data.normalization),
        **{f"input {info.name}": _account(info, data.normalization) for info in data.inputs},
    }
    asked = {} if task is None else {"task": task}
    return {"arch": arch, "data": spec, **sizes, **facts, **plain, **asked}


def _account(info: InputInfo, normalization: Normalization) -> list[Any]:
    """A named input and its normalisation, as plain values."""
    own = normalization.of(info.name)
    return [list(info.shape), info.dtype, *([] if own is None else _numbers(own))]


def _numbers(own: Normalization) -> list[Any]:
    """Mean and std, and along which dim these are where that is not dim 1: states of earlier versions say none."""
    return [list(own.mean), list(own.std), *([] if own.dim == 1 else [own.dim])]


class Pace:
    """Lets a state be written so seldom that writing takes a small share of the time; the first is written."""

    def __init__(self, share: float = 0.02) -> None:
        self._share, self._next = share, 0.0

    @property
    def is_due(self) -> bool:
        """Whether the time has come for the next."""
        return time.perf_counter() >= self._next

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time how long it takes inside."""
        started = time.perf_counter()
        yield
        ended = time.perf_counter()
        self._next = ended + (ended - started) / self._share


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where a training keeps its state, written whole after each epoch.

    Args:
        path: the file.
        identity: the training that it belongs to, see `identity`.
        resume: whether the training goes on from what is there already; else that is replaced.
        pace: how often it is written, for a training that is a part of something larger; else after each epoch.
    """

    path: Path
    identity: Mapping[str, Any]
    resume: bool = False
    pace: Pace | None = None

    @property
    def is_due(self) -> bool:
        """Whether the state is to be written now."""
        return self.pace is None or self.pace.is_due

    def content(self) -> bytes | None:
        """The file's bytes, or None where there is nothing to go on from."""
        return read_file(self.path, "training") if self.resume and os.path.lexists(self.path) else None

    def read(self, content: bytes) -> dict[str, Any]:
        """The state in the bytes of the file.

        Raises:
            InputError: damaged, or of another training; says what differs.
        """
        state = unpack(content, str(self.path))
        if not isinstance(state, dict) or state.get("format") != FORMAT or not set(_CONTENTS) <= set(state):
            raise InputError(f"{self.path}: expected the state of a training ({FORMAT}), got something else")
        kept = state["identity"]
        found = different(self.identity, kept if isinstance(kept, Mapping) else {})
        if found:
            raise InputError(f"{self.path}: this is the state of another training; {found}")
        return state

    def check_random(self, state: Mapping[str, Any], shape: tuple[int, int], device: torch.device) -> None:
        """Raise InputError for a state of other processes or another kind of device.

        Args:
            shape: of the random states of these, `(n_ranks, n_bytes)`: each process has one, each kind of device its
                own kind. Several have one beside that they draw from alike, which earlier versions did not.
        """
        kept, (n_ranks, n_bytes) = state["random"], shape
        if len(kept) != n_ranks:
            raise InputError(f"{self.path}: processes: expected as many as before, {len(kept)}, got {n_ranks}")
        if kept.shape[1] != n_bytes:
            raise InputError(f"{self.path}: expected the kind of device that it trained on before, got {device.type}")
        if n_ranks > 1 and "drawn" not in state:
            raise InputError(
                f"{self.path}: expected a state of this version, got one of several processes of an earlier version; "
                "begin anew"
            )

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file: after an error or a kill there is the old one or the new one."""
        content = {"format": FORMAT, "identity": dict(self.identity), **state}
        buffer = io.BytesIO()
        with nullcontext() if self.pace is None else self.pace.writing():
            torch.save(content, buffer)
            write_atomically(self.path, buffer.getvalue())

    def remove(self) -> None:
        """The training has ended, and its network is written."""
        self.path.unlink(missing_ok=True)


def check_alike(expected: Any, got: Any, where: str) -> None:
    """Raise ValueError where a state is not built as the one that this training would write.

    Tensors have the same shapes and types, mappings the same names, lists the same length; numbers are finite. Where
    nothing stands yet, anything may.
    """
    if not _fits(expected, got):
        raise ValueError(f"{where}: expected {_told(expected)}, got {_told(got)}")
    for name, own, other in _parts(expected, got):
        check_alike(own, other, f"{where}{name}")


def _fits(expected: Any, got: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return isinstance(got, torch.Tensor) and (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if isinstance(expected, Mapping):
        return isinstance(got, Mapping) and set(got) == set(expected)
    if isinstance(expected, (list, tuple)):
        return isinstance(got, (list, tuple)) and len(got) == len(expected)
    return expected is None or _is_same_kind(expected, got)


def _parts(expected: Any, got: Any) -> list[tuple[str, Any, Any]]:
    """What two values of one structure hold, side by side, and how it is called."""
    if isinstance(expected, Mapping):
        return [(f".{name}", own, got[name]) for name, own in expected.items()]
    if isinstance(expected, (list, tuple)):
        return [(f"[{index}]", own, got[index]) for index, own in enumerate(expected)]
    return []


def _is_same_kind(expected: Any, got: Any) -> bool:
    if type(expected) in (int, float):
        return type(got) in (int, float) and abs(got) < _LARGEST
    return type(got) is type(expected)


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else shown(value)


def expected_got(name: str, expected: str, got: str) -> str:
    """What is said of a name and its two values, in the words of all refusals."""
    return f"{name}: expected {expected}, got {got}"


def different(
    expected: Mapping[str, Any], got: Mapping[str, Any], told_as: Callable[[str, str, str], str] = expected_got
) -> str:
    """In which values two trainings differ, in words; empty where in none.

    Args:
        told_as: what is said of a name and its two values.
    """
    expected, got = _flat(expected), _flat(got)
    names = [name for name in {**expected, **got} if name not in got or got[name] != expected.get(name)]
    told = [
        told_as(one_line(str(name), 60), shown(expected.get(name)), shown(got.get(name))) for name in names[:_MAX_NAMED]
    ]
    more = [f"and {len(names) - _MAX_NAMED} more"] if len(names) > _MAX_NAMED else []
    return ", ".join([*told, *more])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in mappings by two names: `recipe ema`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = value if isinstance(value, Mapping) else {}
        found |= {f"{name} {key}": part for key, part in inner.items()} if inner else {name: value}
    return found
