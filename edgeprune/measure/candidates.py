"""What a network takes in its runtime: the file that a budget is measured on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeprune.cost.device import Device
from edgeprune.cost.models import latency_model
from edgeprune.export import ort
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import analyze
from edgeprune.measure.latency import compare_latency, measure_files, ratio_interval
from edgeprune.measure.peaks import device_peak
from edgeprune.measure.profiling import is_here
from edgeprune.progress import Progress
from edgeprune.results import LatencyComparison
from edgeprune.search.candidate import Gauge, Measured
from edgeprune.units import LatencyLimit

WIDE = 0.06  # of the ratio: an interval that wide says that something else ran on the machine
_AGAIN = 2
_SECONDS = 6.0
_TRIAL_SECONDS = 3.0
_FINAL_SECONDS = (8.0, 20.0)

Draft = Callable[[Program, Path], None]


class OnnxGauge:
    """Measures candidates beside the dense network in onnxruntime, each pair in turn.

    `draft` writes the file of a network. `foreign` is a device that is not this machine: the milliseconds are then
    those that its profile foretells.
    """

    def __init__(  # noqa: PLR0913 - a network, what it is run on and how, who is told, and what is no file's
        self,
        dense: Program,
        example: ort.Feed,
        threads: int,
        progress: Progress,
        draft: Draft,
        foreign: Device | None = None,
    ) -> None:
        self._example, self._threads, self._progress, self._foreign = example, threads, progress, foreign
        self._folder = tempfile.TemporaryDirectory(prefix="edgeprune-")
        self._dense = Path(self._folder.name) / "dense.onnx"
        self._draft = draft
        draft(dense, self._dense)
        self._dense_ms = self._foretold(dense)

    def __call__(self, program: Program, surely: bool) -> Measured:
        """One inference and the file's size, beside the dense network's; `surely`: again on a busy machine."""
        slim = Path(self._folder.name) / "slim.onnx"
        self._draft(program, slim)
        sizes = (slim.stat().st_size, self._dense.stat().st_size)
        if self._foreign is not None:
            return Measured(self._foretold(program), self._dense_ms, *sizes)
        pair, examples = (self._dense, slim), (self._example, self._example)
        if surely:
            times = steady_times(pair, examples, self._threads, self._progress)
        else:
            times = measure_files(pair, examples, threads=self._threads, max_seconds=_TRIAL_SECONDS)
        dense_ms, slim_ms = np.median(times, axis=0)
        return Measured(float(slim_ms), float(dense_ms), *sizes)

    def _foretold(self, program: Program) -> float:
        return 0.0 if self._foreign is None else latency_model(analyze(program), self._foreign).total


class PeakGauge:
    """Works out the peak of the activations beside the dense network's, to what another gauge measures of files.

    Where nothing is asked of a file there is no other; time and size count as equal then.
    """

    def __init__(self, dense: Program, of_files: Gauge | None) -> None:
        self._dense_peak, self._of_files = device_peak(dense), of_files

    def __call__(self, program: Program, surely: bool) -> Measured:
        """The peak is sure at once."""
        measured = Measured(1.0, 1.0, 1, 1) if self._of_files is None else self._of_files(program, surely)
        return replace(measured, peak=device_peak(program), dense_peak=self._dense_peak)


def steady_times(
    paths: tuple[Path, Path], inputs: tuple[ort.Feed, ort.Feed], threads: int, progress: Progress
) -> np.ndarray:
    """Milliseconds `(n_runs, 2)` of two files; on a busy machine they are taken again, and it is said."""
    for again in range(_AGAIN + 1):
        times = measure_files(paths, inputs, threads=threads, max_seconds=_SECONDS * (again + 1), progress=progress)
        low, high = ratio_interval(times)
        if high - low <= WIDE:
            break
        then = "measured again" if again < _AGAIN else "the budget is judged by what was measured last"
        progress.say(f"the machine is busy: the latency's ratio lies between {low:.2f} and {high:.2f}; {then}")
    return times


def foreign(device: Device | None) -> Device | None:
    """The profile of another device than this machine, which foretells the latency there; else None."""
    return device if device is not None and not is_here(device) else None


def is_held(latency: LatencyComparison, limit: LatencyLimit | None, device: Device | None) -> bool:
    """Whether a latency that was measured keeps its limit; one of another device is foretold while a network is cut."""
    if limit is None or foreign(device) is not None:
        return True
    return (limit.ratio is None or latency.ratio <= limit.ratio) and (
        limit.ms is None or latency.slim_p50_ms <= limit.ms
    )


def timed(  # noqa: PLR0913 - two files, what they are run on and what is held
    paths: tuple[Path, Path],
    inputs: ort.Feed,
    limit: LatencyLimit | None,
    device: Device | None,
    *,
    threads: int,
    progress: Progress,
) -> LatencyComparison:
    """Both files in turn on the same inputs; longer where noise, which no cut met on the way, misses the limit."""
    for seconds in _FINAL_SECONDS:
        latency = compare_latency(*paths, inputs, inputs, threads=threads, max_seconds=seconds, progress=progress)
        if is_held(latency, limit, device):
            break
    return latency
