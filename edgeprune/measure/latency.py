"""How long ONNX files take, side by side, and how sure it is that one is faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.feeds import n_rows
from edgeprune.progress import Progress, Silent
from edgeprune.results import LatencyComparison

MIN_RUNS = 5  # however slow a run is
N_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 200  # bounds the memory: 200 resamples of 10,000 runs are 16 MB an array
_SEED = 0


@dataclass(frozen=True, slots=True)
class _Timing:
    runs: int
    warmup: int
    max_seconds: float

    def check(self) -> None:
        if self.runs < 1 or self.warmup < 0 or not self.max_seconds > 0:
            raise InputError(
                "expected at least 1 run, 0 warm-up runs and more than 0 seconds, "
                f"got {self.runs}, {self.warmup} and {self.max_seconds}"
            )


def compare_latency(  # noqa: PLR0913 - the public entry point spells its options out
    dense_path: Path,
    slim_path: Path,
    dense_inputs: ort.Feed,
    slim_inputs: ort.Feed,
    *,
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    max_seconds: float = 20.0,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> LatencyComparison:
    """Time two ONNX files in onnxruntime, run by run in turn, so that what slows the machine slows both.

    Args:
        dense_inputs: `(batch, ...)` for the dense file; by name where it has several inputs.
        slim_inputs: `(batch, ...)` of the same batch for the slim file.
        threads: onnxruntime threads within an operator.
        runs: timed runs of each file.
        warmup: untimed runs of each file before; they take at most a quarter of `max_seconds`.
        max_seconds: measuring ends after this with fewer runs, though never fewer than 5 unless fewer were asked for.

    Raises:
        InputError: a file that cannot be run on its inputs, or options out of range.
    """
    batch = n_rows(dense_inputs)
    if batch != n_rows(slim_inputs):
        raise InputError(f"expected the same batch for both files, got {batch} and {n_rows(slim_inputs)}")
    times = measure_files(
        (dense_path, slim_path),
        (dense_inputs, slim_inputs),
        threads=threads,
        runs=runs,
        warmup=warmup,
        max_seconds=max_seconds,
        progress=progress,
    )
    (dense_p50, slim_p50), (dense_p95, slim_p95) = np.percentile(times, [50, 95], axis=0)
    return LatencyComparison(
        dense_p50_ms=float(dense_p50),
        dense_p95_ms=float(dense_p95),
        slim_p50_ms=float(slim_p50),
        slim_p95_ms=float(slim_p95),
        ratio=float(slim_p50 / dense_p50),
        ratio_interval=ratio_interval(times),
        threads=threads,
        batch_size=batch,
        n_runs=len(times),
    )


def measure_files(  # noqa: PLR0913 - the public entry point spells its options out
    paths: Sequence[Path],
    inputs: Sequence[ort.Feed],
    *,
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    max_seconds: float = 20.0,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> np.ndarray:
    """Milliseconds `(n_runs, n_files)` of ONNX files in onnxruntime, timed run by run in turn.

    Args:
        inputs: `(batch, ...)` for each file; by name for one with several inputs.
        threads: onnxruntime threads within an operator.
        runs: timed runs of each file.
        warmup: untimed runs of each file before; they take at most a quarter of `max_seconds`.
        max_seconds: measuring ends after this with fewer runs, though never fewer than 5 unless fewer were asked for.

    Raises:
        InputError: a file that cannot be run on its inputs, or options out of range.
    """
    _Timing(runs, warmup, max_seconds).check()
    runners = [ort.runner(Path(path), array, threads) for path, array in zip(paths, inputs, strict=True)]
    return measure_runners(runners, runs=runs, warmup=warmup, max_seconds=max_seconds, progress=progress)


def measure_runners(
    runners: Sequence[Callable[[], object]],
    *,
    runs: int = 200,
    warmup: int = 20,
    max_seconds: float = 20.0,
    progress: Progress = Silent(),  # noqa: B008 - it has no state
) -> np.ndarray:
    """Milliseconds `(n_runs, n_runners)` of calls, each one inference of a runtime; options as for `measure_files`.

    Raises:
        InputError: options out of range.
    """
    timing = _Timing(runs, warmup, max_seconds)
    timing.check()
    return _measure(runners, timing, progress)


def ratio_interval(times: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of median(slim) / median(dense) over pairs of runs; `times` is `(n_runs, 2)`."""
    rng = np.random.default_rng(_SEED)
    ratios = []
    for _ in range(0, N_RESAMPLES, _RESAMPLES_AT_ONCE):
        sample = times[rng.integers(0, len(times), (_RESAMPLES_AT_ONCE, len(times)))]
        medians = np.median(sample, axis=1)
        ratios.append(medians[:, 1] / medians[:, 0])
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)


def _measure(runners: Sequence[Callable[[], object]], timing: _Timing, progress: Progress) -> np.ndarray:
    """Milliseconds `(n_runs, n_runners)`, each round in another order: whom one follows decides what the caches hold.

    Who follows itself, as the last would if every other round went backwards, finds its own weights in them.
    """
    start = perf_counter_ns()
    budget_ns = timing.max_seconds * 1e9
    for _ in range(timing.warmup):
        if perf_counter_ns() - start > budget_ns / 4:
            break
        for one in runners:
            one()
    times = np.empty((timing.runs, len(runners)))
    rng = np.random.default_rng(_SEED)
    for done in range(timing.runs):
        if done >= MIN_RUNS and perf_counter_ns() - start > budget_ns:
            return times[:done]
        for which in rng.permutation(len(runners)):
            before = perf_counter_ns()
            runners[which]()
            times[done, which] = (perf_counter_ns() - before) / 1e6
        progress.advance(done + 1, timing.runs)
    return times
