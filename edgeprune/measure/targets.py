"""The files of several runtimes side by side, and which of them to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.export.target import Runner
from edgeprune.measure.latency import measure_runners, ratio_interval
from edgeprune.progress import Progress
from edgeprune.results import LeftOutTarget, TargetRow, TargetTable

_SECONDS = 8.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The file of a target, and one inference of it a call, None where nothing here runs it.

    `size_bytes` counts all that it needs; `note` is what else to know of it.
    """

    target: str
    path: Path
    size_bytes: int
    parity: float | None
    runner: Runner | None
    note: str = ""


def compare_targets(
    files: Sequence[Candidate], left_out: Sequence[LeftOutTarget], told: Progress, max_seconds: float = _SECONDS
) -> TargetTable:
    """Time the files run by run in turn, and choose.

    The one to ship is the fastest that is faster than the first for sure; else the smallest that is smaller than the
    first and not slower for sure; else the first. Such figures are of this processor alone.

    Args:
        files: the ONNX file first.
        left_out: what is not among them.
        told: told of the progress.
        max_seconds: of measuring.
    """
    runners = [file.runner for file in files if file.runner is not None]
    times = measure_runners(runners, max_seconds=max_seconds, progress=told)
    columns = iter(range(len(runners)))
    rows = [_row(file, None if file.runner is None else times[:, [0, next(columns)]]) for file in files]
    ship, why = _choice(rows)
    return TargetTable(tuple(rows), tuple(left_out), ship, why)


def _row(file: Candidate, times: np.ndarray | None) -> TargetRow:
    """`times` is `(n_runs, 2)`: the first file and this one."""
    known = file.target, str(file.path), file.size_bytes, file.parity
    if times is None:
        return TargetRow(*known, None, None, None, file.note or "not run on this machine")
    base, p50 = np.median(times, axis=0)
    low, high = ratio_interval(times)
    ratio = float(p50 / base)
    return TargetRow(*known, float(p50), ratio, (low, high), "; ".join(filter(None, (_speed(low, high), file.note))))


def _speed(low: float, high: float) -> str:
    if low == high == 1:
        return "the reference"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "no significant difference in time"


def _choice(rows: Sequence[TargetRow]) -> tuple[str, str]:
    """The path of the one to ship, and why."""
    first, *others = rows
    timed = [(row, row.ratio, row.ratio_interval) for row in others if row.ratio is not None and row.ratio_interval]
    faster = [one for one in timed if one[2][1] < 1]
    if faster:
        best, ratio, (low, high) = min(faster, key=lambda one: one[1])
        share = f"{ratio:.2f} of the ONNX file's time ({low:.2f} to {high:.2f})"
        return best.path, f"the fastest on this processor: {share}"
    return _smallest(first, [row for row, _, interval in timed if interval[0] <= 1])


def _smallest(first: TargetRow, others: Sequence[TargetRow]) -> tuple[str, str]:
    """The smallest of those that are not slower, if it is smaller than the first."""
    best = min(others, key=lambda row: row.size_bytes, default=first)
    if best.size_bytes >= first.size_bytes:
        return first.path, "on this processor the others are slower or no smaller"
    share = f"{best.size_bytes / first.size_bytes:.2f} of the ONNX file's size"
    return best.path, f"none is faster for sure on this processor; the smallest, {share}, is not slower"
