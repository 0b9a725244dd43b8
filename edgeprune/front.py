"""Several networks along the front of accuracy and latency: which of them is taken, and what each takes."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.candidate import Candidate
from edgeprune.job import ASSUMED_DROP, Job
from edgeprune.progress import Progress
from edgeprune.records import FrontPoint


def chosen(found: Sequence[Candidate], dense: Candidate, max_drop: float | None) -> Candidate:
    """The smallest network that loses at most `max_drop` points; the best one where all lose more.

    `found` goes from large to small. Without accuracies it is the smallest.
    """
    accuracies = [candidate.val_accuracy for candidate in found]
    if dense.val_accuracy is None or any(accuracy is None for accuracy in accuracies) or len(found) == 1:
        return found[-1]
    floor = dense.val_accuracy - (ASSUMED_DROP if max_drop is None else max_drop) / 100 - 1e-9
    held = [candidate for candidate in found if (candidate.val_accuracy or 0.0) >= floor]
    return held[-1] if held else max(found, key=lambda candidate: candidate.val_accuracy or 0.0)


def front_points(job: Job, found: Sequence[Candidate], best: Candidate, told: Progress) -> tuple[FrontPoint, ...]:
    """Every network of the front, measured beside the dense one."""
    gauge, dense = job.search.gauge, job.search.dense
    assert gauge is not None
    points = []
    for number, candidate in enumerate(found, 1):
        told.stage(f"measure network {number} of {len(found)}")
        measured = gauge(candidate.program, True)
        points.append(
            FrontPoint(
                folder=f"pareto/{number}",
                macs_ratio=candidate.macs / dense.macs,
                val_accuracy=candidate.val_accuracy,
                p50_ms=measured.ms,
                latency_ratio=measured.ms / measured.dense_ms,
                size_bytes=measured.size_bytes,
                chosen=candidate is best,
            )
        )
    return tuple(points)
