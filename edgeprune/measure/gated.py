"""A file that picks a width for each sample, beside the dense network: what it picks, and its mean time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from edgeprune.data import read
from edgeprune.export import ort
from edgeprune.export.gated import OneByOne
from edgeprune.measure.latency import N_RESAMPLES, measure_runners
from edgeprune.measure.networkfile import NetworkFile
from edgeprune.progress import Progress
from edgeprune.records import DataSource
from edgeprune.results import GateUse, LatencyComparison

_SEED = 0


def is_gated(network: NetworkFile) -> bool:
    """Whether a file picks its width by the sample."""
    return isinstance(network.session, OneByOne)


def gate_use(
    dense: NetworkFile, slim: NetworkFile, data: DataSource, *, threads: int, runs: int, progress: Progress
) -> tuple[LatencyComparison, GateUse]:
    """How long both take, sample by sample in turn, and what the gate has picked on the test split.

    The mean over the split is that of the p50 of each width, by how often it is picked: what stops the machine for a
    moment counts in none.

    Args:
        slim: a gated file, which has just answered the whole test split.
        runs: timed runs of each, of samples that are spread over the split and over the widths.
    """
    assert isinstance(slim.session, OneByOne)
    gated, n_samples = slim.session.gated, len(data.test)  # type: ignore[arg-type]
    picks = np.array(slim.session.picked[-n_samples:])
    picked = np.bincount(picks, minlength=len(gated.widths)) / n_samples
    chosen = _chosen(picks, min(runs, n_samples))
    times, ran = _times(dense, slim, data, chosen, threads=threads, runs=runs, progress=progress)
    (dense_p50, slim_p50), (dense_p95, slim_p95) = np.percentile(times, [50, 95], axis=0)
    mean_ms = mean_time(times[:, 1], picks[ran], picked)
    interval = _ratio_interval(times, picks[ran], picked)
    latency = LatencyComparison(
        dense_p50_ms=float(dense_p50),
        dense_p95_ms=float(dense_p95),
        slim_p50_ms=float(slim_p50),
        slim_p95_ms=float(slim_p95),
        ratio=mean_ms / float(dense_p50),
        ratio_interval=interval,
        threads=threads,
        batch_size=1,
        n_runs=len(times),
    )
    macs_ratio = gated.mean_macs(picks) / gated.macs[0]
    return latency, GateUse(gated.widths, tuple(picked.tolist()), macs_ratio, float(dense_p50), mean_ms)


def mean_time(times: np.ndarray, picks: np.ndarray, picked: np.ndarray) -> float:
    """The mean of the p50 of each width, by the share of all samples that it is picked for.

    Args:
        times: of runs, `(n_runs,)`.
        picks: the width of each.
        picked: the share of each width; those that none of the runs was of are left out.
    """
    medians = [
        (share, np.median(times[picks == width])) for width, share in enumerate(picked) if (picks == width).any()
    ]
    shares, values = np.array(medians).T
    return float(shares @ values / shares.sum())


def _ratio_interval(times: np.ndarray, picks: np.ndarray, picked: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean time over the dense p50, over pairs of runs `(n_runs, 2)`."""
    rng, ratios = np.random.default_rng(_SEED), []
    for _ in range(N_RESAMPLES):
        rows = rng.integers(0, len(times), len(times))
        ratios.append(mean_time(times[rows, 1], picks[rows], picked) / np.median(times[rows, 0]))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _chosen(picks: np.ndarray, n: int) -> torch.Tensor:
    """The indices of so many samples, spread over those of each width, in an order that is drawn."""
    by_width = np.argsort(picks, kind="stable")[np.linspace(0, len(picks) - 1, n).round().astype(int)]
    return torch.from_numpy(np.random.default_rng(_SEED).permutation(by_width))


def _times(  # noqa: PLR0913 - two files, the samples they run on and how
    dense: NetworkFile,
    slim: NetworkFile,
    data: DataSource,
    chosen: torch.Tensor,
    *,
    threads: int,
    runs: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds `(n_runs, 2)`, and the sample of each run: both run the same one, then the next one."""
    raw = [x for x, _ in read(data.test, list(chosen.split(1)))]
    turns: list[int] = []
    runners = [
        _each_in_turn(dense, [dense.inputs(x) for x in raw], threads, []),
        _each_in_turn(slim, [slim.inputs(x) for x in raw], threads, turns),
    ]
    times = measure_runners(runners, runs=runs, progress=progress)
    return times, chosen.numpy()[np.array(turns[-len(times) :]) % len(raw)]


def _each_in_turn(
    network: NetworkFile, inputs: Sequence[ort.Feed], threads: int, turns: list[int]
) -> Callable[[], object]:
    """One inference a call, of one sample after the other; their numbers go to `turns`."""
    session = ort.session(network.path, threads)
    feeds = [one if isinstance(one, dict) else {session.get_inputs()[0].name: one} for one in inputs]

    def once() -> object:
        turns.append(len(turns))
        return session.run(None, feeds[turns[-1] % len(feeds)])

    return once
