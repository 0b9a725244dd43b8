"""Two files of networks, checked, and both run in onnxruntime on the whole test split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeprune.data import batches
from edgeprune.data.inputs import Inputs, changed, first_of
from edgeprune.errors import InputError
from edgeprune.measure.foreign import batch_of
from edgeprune.measure.latency import compare_latency
from edgeprune.measure.networkfile import NetworkFile
from edgeprune.progress import Progress
from edgeprune.records import DataSource
from edgeprune.results import LatencyComparison
from edgeprune.tasks.classification import Classification, scores
from edgeprune.tasks.intervals import Luck, luck
from edgeprune.tasks.outputs import described, leaves
from edgeprune.tasks.task import Outcomes, Task, joined, mean_share


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What both networks make of the test split.

    `outcomes` are those of the task; `difference` is the largest of any output, `agreement` the share of answers that
    are the same, None where they are no decisions. `luck` is the dense network's, of a classification.
    """

    outcomes: tuple[Outcomes, Outcomes]
    difference: float
    agreement: float | None
    luck: Luck | None


def run_both(dense: NetworkFile, slim: NetworkFile, data: DataSource, task: Task, progress: Progress) -> Compared:
    """Run both on the test split; where the task goes by a reference, that is the dense network.

    Raises:
        InputError: outputs or targets that do not fit the task or each other, or no samples.
    """
    outcomes: tuple[list[Outcomes], list[Outcomes]] = ([], [])
    classes: list[tuple[np.ndarray, np.ndarray]] = []
    agreed: list[tuple[float | None, int]] = []
    difference, done, total = 0.0, 0, len(data.test)  # type: ignore[arg-type]
    for x, raw in _test_batches(data):
        answers = dense.answers(x), slim.answers(x)
        targets = answers[0] if task.by_reference else task.targets(raw)
        for network, own, given in zip((dense, slim), outcomes, answers, strict=True):
            own.append(_outcomes(network, given, targets, task))
        difference = max(difference, _difference(slim, *answers))
        agreed.append((task.agrees(*answers), len(first_of(x))))
        if isinstance(task, Classification):
            classes.append((scores(answers[0]).argmax(axis=1), targets.numpy()))
        done += len(first_of(x))
        progress.advance(done, total)
    if not done:
        raise InputError(f"data {data.name}: expected samples in the test split, got none")
    guessed = luck(*map(np.concatenate, zip(*classes, strict=True))) if classes else None
    return Compared((joined(outcomes[0]), joined(outcomes[1])), difference, mean_share(agreed), guessed)


def _outcomes(network: NetworkFile, answers: Any, targets: Any, task: Task) -> Outcomes:
    try:
        return task.outcomes(answers, targets)
    except InputError as error:
        raise InputError(f"{network.path}: {error}") from error


def _difference(slim: NetworkFile, want: Any, got: Any) -> float:
    """The largest between any two outputs."""
    pairs = list(zip(leaves(want), leaves(got), strict=False))
    if len(leaves(want)) != len(leaves(got)) or any(a.shape != b.shape for (_, a), (_, b) in pairs):
        raise InputError(
            f"{slim.path}: expected outputs like those of the dense network, {described(want)}, got {described(got)}"
        )
    apart = [a - b if a.dtype.kind == "f" else a.astype(np.float64) - b for (_, a), (_, b) in pairs]
    return float(max((np.abs(part).max(initial=0.0) for part in apart), default=0.0))


def _test_batches(data: DataSource) -> Iterator[tuple[Inputs, Any]]:
    return batches(data.test, batch_of(data))


def latency_beside(  # noqa: PLR0913 - two files, their data and how to time them
    dense: NetworkFile,
    slim: NetworkFile,
    data: DataSource,
    *,
    batch_size: int,
    threads: int,
    runs: int,
    progress: Progress,
) -> LatencyComparison:
    """Time both on the same raw samples; preprocessing is not part of it."""
    x, _ = next(_test_batches(data))
    index = torch.arange(batch_size) % len(first_of(x))
    raw = changed(x, lambda tensor: tensor[index])
    return compare_latency(
        dense.path, slim.path, dense.inputs(raw), slim.inputs(raw), threads=threads, runs=runs, progress=progress
    )
