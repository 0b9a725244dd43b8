"""The dense network beside which an export is timed: the one that is given, else the one that the run came from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.formats.trust import recorded_arch, recorded_file
from edgeprune.progress import Progress
from edgeprune.reading import read_json
from edgeprune.records import InputInfo, Model, ModelInfo
from edgeprune.requests import ExportRequest


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What a run.json says of the model that the run came from."""

    path: str
    sha256: str
    arch: str | None
    module: str | None
    state_key: str | None = None
    ignore_keys: str | None = None
    inputs: tuple[InputInfo, ...] = ()


def dense_network(
    request: ExportRequest, path: Path, info: ModelInfo, told: Progress, inputs: Sequence[InputInfo] = ()
) -> Model | None:
    """The dense network of the model at `path`; None where none is given and the run's is not known or has gone.

    `inputs` are those that the data have by name.

    What the run records is not opened or built on its word, see `trust.py`; where that is why there is none, it is
    said.

    Raises:
        InputError: the one that is given cannot be read or takes other inputs; or there is none for `--web`.
    """
    file = path.parent / "run.json"
    recorded = _read(file)
    if request.dense is not None:
        dense = load(
            request.dense,
            arch=request.arch,
            input_shape=info.input_shape or None,
            unsafe_pickle=request.unsafe_pickle,
            inputs=_constants(recorded, Path(request.dense)),
            data_inputs=inputs,
        )
        if tuple(dense.info.input_shape) != tuple(info.input_shape):
            raise InputError(
                f"--dense {request.dense}: expected inputs {info.input_shape}, got {dense.info.input_shape}"
            )
        return dense
    try:
        found = None if recorded is None else _of_run(recorded, file, request, info, inputs)
    except InputError as error:
        if "web" in request.targets:
            raise InputError(f"--web: expected the dense network, got none; give --dense ({error})") from error
        told.say(f"the files are not timed beside the dense network of the run; --dense names it ({error})")
        return None
    if found is None and "web" in request.targets:
        raise InputError(f"--web: expected a {file} that names the dense network; give --dense")
    return found


def _read(file: Path) -> _Recorded | None:
    """What a run.json records of its model; None where there is none, or another file."""
    try:
        document = read_json(file, "run")
        model, asked = document["model"], document.get("asked") or {}
        given: list[Any] = [model[name] for name in ("path", "sha256", "arch", "module")]
        given += [asked.get(name) for name in ("state_key", "ignore_keys")]
        inputs = tuple(_constant(entry) for entry in asked.get("inputs") or () if entry.get("numbers"))
    except (InputError, KeyError, TypeError, AttributeError):
        return None
    if not all(isinstance(value, str) for value in given[:2]) or not all(isinstance(v, str | None) for v in given[2:]):
        return None
    return replace(_Recorded(*given), inputs=inputs)


def _constant(entry: Mapping[str, Any]) -> InputInfo:
    """An input that became a constant of the network; raises TypeError for what is none."""
    name, numbers = entry["name"], entry["numbers"]
    if not isinstance(name, str) or not isinstance(numbers, list) or not all(_is_finite(one) for one in numbers):
        raise TypeError("expected a name and numbers")
    return InputInfo(name, (), numbers=tuple(numbers))


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and abs(number) < sys.float_info.max


def _constants(recorded: _Recorded | None, dense: Path) -> tuple[InputInfo, ...]:
    """The inputs of an .onnx file that the run made constants of."""
    return recorded.inputs if recorded is not None and dense.suffix == ".onnx" else ()


def _of_run(
    recorded: _Recorded, file: Path, request: ExportRequest, info: ModelInfo, inputs: Sequence[InputInfo]
) -> Model | None:
    """The model that the run came from, if it still lies where it was and is the same."""
    given = recorded_file(recorded.path, str(file), file.parent, request.trust_recorded)
    if not os.path.isfile(given):  # which a name of any length may be asked
        return None
    arch, refusal = request.arch, None
    if arch is None and recorded.arch is not None:
        try:
            arch = recorded_arch(recorded.arch, str(file), request.trust_recorded)
        except InputError as error:  # a file that carries its network needs no architecture
            refusal = error
    try:
        dense = load(
            given,
            arch=arch,
            input_shape=info.input_shape or None,
            inputs=_constants(recorded, Path(given)),
            data_inputs=inputs,
            module=recorded.module,
            state_key=recorded.state_key,
            ignore_keys=recorded.ignore_keys,
        )
    except InputError as error:
        raise refusal or error from error
    return dense if dense.sha256 == recorded.sha256 else None
