"""Several networks along the front of accuracy and latency: which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.search.candidate import ASSUMED_DROP, Candidate


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
