"""How the end-to-end tests run the commands: in this process through `main`, or in a process of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.cli.app import main

ROOT = Path(__file__).parents[2]
MLP = str(ROOT / "models" / "digits_mlp.pt")
CNN = str(ROOT / "models" / "digits_cnn.pt")
NETS = str(ROOT / "models" / "digits.py")
PYTHON = os.path.abspath(sys.executable)  # the tests change the working folder
# Small enough for a test: one cut to half the MACs, hardly any finetuning.
QUICK = ("--keep-macs", "0.5", "--finetune-epochs", "1", "--threads", "1")


@dataclass(frozen=True)
class Result:
    """What one command did: its exit code and all that it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; raises where there is anything else."""
        return json.loads(self.out)


def run(folder: Path, *arguments: object) -> Result:
    """Run a command in `folder`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """That of a command in a process of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, as a shell would."""
    command = [PYTHON, "-m", "edgeprune", *map(str, arguments)]
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    return subprocess.Popen(command, cwd=folder, **{**usual, **options})


_DIES = """
import importlib, os, signal, sys

path, number, *arguments = sys.argv[1:]
place, name = path.rsplit(".", 1)
owner, left = importlib.import_module(place), int(number)
call = getattr(owner, name)


def dying(*given, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*given, **named)


setattr(owner, name, dying)
from edgeprune.cli.app import main

sys.exit(main(arguments))
"""


def killed_at(folder: Path, call: str, number: int, *arguments: object) -> int:
    """Run a command that is killed where it calls a function, e.g. "os.replace", for the `number`th time.

    The exit code: -9 where it came to that, else its own.
    """
    command = [PYTHON, "-c", _DIES, call, str(number), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True).returncode


def torchrun(folder: Path, n_ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script or a module in so many processes, as torchrun does on one machine."""
    command = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )


def done(folder: Path, *arguments: object) -> Result:
    """Run a command that must succeed, in this process."""
    result = run(folder, *arguments)
    assert result.code == 0, result.err
    return result


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` with its content, every folder with None; links are not followed."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = path.read_bytes() if is_file else None
    return found


def refused(folder: Path, *arguments: object, code: int = 2) -> str:
    """Run a command that must be refused: one line on stderr, nothing on stdout, nothing written. Returns the line."""
    before = snapshot(folder)
    result = run(folder, *arguments)
    assert result.code == code, result
    assert result.out == ""
    [line] = result.err.splitlines()
    assert line.startswith("edgeprune: ")
    assert "Traceback" not in line
    assert snapshot(folder) == before
    return line


def assumed(err: str) -> list[str]:
    """What a command said that it assumed."""
    return [line.removeprefix("assumed: ") for line in err.splitlines() if line.startswith("assumed: ")]


def names(folder: Path) -> set[str]:
    """The names in a folder."""
    return {path.name for path in folder.iterdir()}


def says(text: str, wanted: Iterable[str]) -> bool:
    """Whether every part stands in the text."""
    return all(part in text for part in wanted)
