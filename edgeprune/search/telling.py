"""What a search says after each step: what it came to, whether it goes on from there, and how much is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeprune.progress import Progress
from edgeprune.records import Metric
from edgeprune.results import StepRecord
from edgeprune.search.effort import Effort


class Teller:
    """Says a line for each step, and its figures; the time that is left is guessed by that of the steps before."""

    def __init__(self, progress: Progress, effort: Effort, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._effort, self._clock = progress, effort, clock
        self._began = clock()

    def tell(self, step: StepRecord, dense: float | None, metric: Metric, n_left: int | None) -> None:
        """Say what a step came to.

        Args:
            dense: the metric of the dense network, None where nothing is looked at.
            n_left: how many steps come after it, None where that depends on what they lose.
        """
        parts = [f"{step.macs_ratio:.1%} of the MACs"]
        if step.n_features is not None:
            parts.append(f"{step.n_features} input features")
        if step.val_value is not None and dense is not None:
            parts.append(f"{metric.name} {metric.shown(step.val_value)} (dense {metric.shown(dense)})")
        verdict = "kept" if step.accepted else "not kept: it loses too much"
        self._progress.say(f"step {step.step}: {', '.join(parts)}; {verdict}; {self._left(step, n_left)}")
        self._progress.measured(_figures(step, metric, n_left))

    def _left(self, step: StepRecord, n_left: int | None) -> str:
        spent = self._clock() - self._began
        if n_left is not None:
            if n_left == 0:
                return "the last step"
            return f"{n_left} more {'step' if n_left == 1 else 'steps'}, about {_time(spent / step.step * n_left)}"
        units = self._effort.most - self._effort.spent
        if self._effort.is_free or self._effort.spent == 0:
            return "more may follow"
        if units <= 0:
            return "no training is left for more"
        return f"at most {units:.0f} finetunings' worth more, about {_time(spent / self._effort.spent * units)}"


def _time(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004


def _figures(step: StepRecord, metric: Metric, n_left: int | None) -> dict[str, float]:
    known = {
        "step/number": step.step,
        "step/MACs": step.macs_ratio,
        "step/input features": step.n_features,
        f"step/{metric.name}": step.val_value,
        "step/kept": float(step.accepted),
        "step/left": n_left,
    }
    return {name: float(value) for name, value in known.items() if value is not None}
