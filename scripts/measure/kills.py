"""A compress run that is killed at random moments and goes on, beside one that is not killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("plan.json", "slim.pt2")


@dataclass(frozen=True, slots=True)
class Kills:
    """`seconds` a run took that was not killed; `states` kills left a state that `--resume` goes on from.

    `n_same` of `n_ends` runs that came to their end have the bytes of that one.
    """

    seconds: float
    n_kills: int
    n_states: int
    n_ends: int
    n_same: int


def killed_and_resumed(folder: Path, arguments: Sequence[str], n_kills: int, seed: int = 0) -> Kills:
    """Kill a command so often and resume it; one that ends before the last kill is compared, and begun anew.

    Args:
        folder: an empty one.
        arguments: of `edgeprune`, without `--out` and `--resume`.

    Raises:
        RuntimeError: the command fails.
    """
    began = time.monotonic()
    _ended(_started(folder, arguments, "whole"))
    seconds, moments = time.monotonic() - began, random.Random(seed)
    whole, killed, states, same = _bytes(folder / "whole"), 0, 0, list[bool]()
    while killed < n_kills or not same:
        name = f"run{len(same)}"
        process = _started(folder, arguments, name, "--resume")
        try:
            process.wait(moments.uniform(0.1, 1.1) * seconds if killed < n_kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            states += (folder / f"{name}.compressing").exists()
            continue
        _ended(process)
        same.append(_bytes(folder / name) == whole)
    return Kills(seconds, killed, states, len(same), sum(same))


def _started(folder: Path, arguments: Sequence[str], name: str, *further: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgeprune", *arguments, "--out", name, *further]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True)


def _ended(process: subprocess.Popen[str]) -> None:
    if process.wait() != 0:
        raise RuntimeError(f"{process.args}: expected exit code 0, got {process.returncode}; see said.txt")


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in COMPARED]
