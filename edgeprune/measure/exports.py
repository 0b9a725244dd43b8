"""The files of an export timed beside the dense network, each in its own runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.export.feeds import n_rows
from edgeprune.export.target import Inputs, Runner, Runtime
from edgeprune.measure.latency import measure_runners
from edgeprune.progress import Progress
from edgeprune.records import Model

_SECONDS = 6.0  # of one runtime


@dataclass(frozen=True, slots=True)
class Timed:
    """A file that holds the network, and what runs it."""

    path: Path
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Figures:
    """One inference of a file, and that over the dense network's in the same runtime."""

    p50_ms: float
    ratio: float


def beside_dense(files: Sequence[Timed], dense: Model, inputs: Inputs, told: Progress) -> dict[Path, Figures]:
    """The files' latency; one that its runtime cannot run on this machine has none, and that is said.

    Args:
        files: each in a runtime of its own, or sharing one.
        dense: what they are timed beside.
        inputs: one batch.
        told: told of the progress.
    """
    found: dict[Path, Figures] = {}
    for runtime in dict.fromkeys(file.runtime for file in files):
        paths = [file.path for file in files if file.runtime == runtime]
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
            found |= _in_runtime(runtime, paths, dense, inputs, Path(place), told)
    return found


def _in_runtime(  # noqa: PLR0913 - what is timed, on what and where
    runtime: Runtime, paths: Sequence[Path], dense: Model, inputs: Inputs, place: Path, told: Progress
) -> dict[Path, Figures]:
    """The files that one runtime runs, timed run by run in turn with the dense network."""
    runners: dict[Path, Runner] = {}
    for path in paths:
        runner = runtime.runner(path, inputs)
        if runner is None:
            told.say(f"{path.name} is not timed: {runtime.name} does not run it on this machine")
        else:
            runners[path] = runner
    if not runners:
        return {}
    draft = runtime.draft(dense.program, place, n_rows(inputs.full))
    base = runtime.runner(draft, Inputs(inputs.full, inputs.full, inputs.full))
    if base is None:
        told.say(f"nothing is timed in {runtime.name}: it does not run the dense network on this machine")
        return {}
    times = measure_runners([base, *runners.values()], max_seconds=_SECONDS, progress=told)
    dense_ms, *medians = np.median(times, axis=0)
    return {path: Figures(float(ms), float(ms / dense_ms)) for path, ms in zip(runners, medians, strict=True)}
