"""Work of foreign converters and runtimes in a process of its own: what crashes or hangs there is one line here.

convert     a function of a module, such as `edgeprune.export.openvino_runtime:convert`, that writes a file
load        a function (path, threads) that gives an `Answer`: what a runtime makes of arrays
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.lines import one_line
from edgeprune.lines import said as described

SECONDS = 900.0  # of one conversion, or of all runs of a file
Answer = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]  # all inputs in their order, and so all outputs
_JOB, _REASON, _GIVEN, _TOLD = "job.json", "reason.txt", "inputs.npz", "outputs.npz"
_REFUSED = 3  # the function raised, and said why


def called(function: str, arguments: Mapping[str, Any], what: str, seconds: float = SECONDS) -> None:
    """Call `module:function` with plain values in a process of its own.

    Args:
        function: by its place; it returns nothing, and leaves what it makes in files.
        arguments: by name, as JSON holds them.
        what: what fails, for the message, e.g. `OpenVINO cannot convert slim.onnx`.
        seconds: after which it is ended.

    Raises:
        InputError: it raised, crashed or took too long; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        _run(Path(folder), function, arguments, what, seconds)


def answers(load: str, file: Path, samples: Sequence[Sequence[np.ndarray]], what: str) -> list[list[np.ndarray]]:
    """What a runtime makes of samples, each all inputs in their order, in a process of its own; errors as `called`.

    Args:
        load: `module:function` of what loads the file.
        file: in the runtime's format.
        samples: e.g. one batch each.
        what: as for `called`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        folder = Path(name)
        _save(folder / _GIVEN, samples)
        given = {"load": load, "file": str(file), "folder": name}
        _run(folder, f"{__name__}:answer", given, what, SECONDS)
        return _loaded(folder / _TOLD)


def answer(load: str, file: str, folder: str) -> None:
    """The process's part of `answers`."""
    model: Answer = _function(load)(Path(file), 1)
    _save(Path(folder) / _TOLD, [model(arrays) for arrays in _loaded(Path(folder) / _GIVEN)])


def _run(folder: Path, function: str, arguments: Mapping[str, Any], what: str, seconds: float) -> None:
    (folder / _JOB).write_text(json.dumps({"function": function, "arguments": dict(arguments)}), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONFAULTHANDLER": ""}
    log = folder / "log.txt"
    with log.open("wb") as stream:
        reads, lives = os.pipe()  # nothing is written: its other end closes however this process ends
        command = [sys.executable, "-P", "-m", __name__, str(folder), str(reads)]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            pass_fds=(reads,),
        )
        os.close(reads)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise InputError(f"{what}: it took more than {seconds:.0f} s{_last_words(log)}") from None
        finally:
            _end(process)
            os.close(lives)
    if code == _REFUSED:
        raise InputError(f"{what}: {(folder / _REASON).read_text(encoding='utf-8')}")
    if code:
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        raise InputError(f"{what}: its process {how}{_last_words(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and whatever it started, if it still runs: also where this one is interrupted."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_words(log: Path) -> str:
    """E.g. `; its last words: layer FooBar not exists`; nothing where it said nothing."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 2**14))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return f"; its last words: {one_line(lines[-1], 160)}" if lines else ""


def _save(path: Path, samples: Sequence[Sequence[np.ndarray]]) -> None:
    arrays = {f"{row}_{place}": array for row, sample in enumerate(samples) for place, array in enumerate(sample)}
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    np.savez(path, lengths=lengths, **arrays)  # type: ignore[arg-type]


def _loaded(path: Path) -> list[list[np.ndarray]]:
    with np.load(path) as held:
        return [[held[f"{row}_{k}"] for k in range(length)] for row, length in enumerate(held["lengths"])]


def _function(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _end_with(caller: int) -> None:
    """Wait until the process that asked is gone, and end this one with all that it started."""
    os.read(caller, 1)
    os.killpg(0, signal.SIGKILL)


def _main(folder: Path, caller: int) -> int:
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    job = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    try:
        _function(job["function"])(**job["arguments"])
    except Exception as error:  # whatever a converter raises
        said = str(error) if isinstance(error, InputError) else described(error)
        (folder / _REASON).write_text(said, encoding="utf-8")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2])))
