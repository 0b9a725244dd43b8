"""Balanced accuracy: the mean over classes of the share that is right of each, so that rare classes count as much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.records import Metric, MetricComparison
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.outputs import to_array
from edgeprune.tasks.task import BaseTask, Outcomes


@dataclass(frozen=True)
class BalancedClassification(Classification):
    """A classification that is judged by balanced accuracy; a class without samples is left out of the mean."""

    metric = Metric("balanced accuracy")

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """The class of each sample and whether it is given, int64 `(n, 2)`."""
        right = super().outcomes(outputs, targets)
        return np.stack([to_array(targets).reshape(-1).astype(np.int64), right.astype(np.int64)], axis=1)

    def value(self, outcomes: Outcomes) -> float:
        """In [0, 1].

        Raises:
            InputError: no samples.
        """
        rows = np.asarray(outcomes)
        if not len(rows):
            raise InputError(f"{self.metric.name}: expected samples, got none")
        return float(self.resampled(rows, np.ones((1, len(rows)), np.int64))[0])

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """A class of which no sample is drawn is left out."""
        order = np.argsort(outcomes[:, 0], kind="stable")
        starts = np.flatnonzero(np.diff(outcomes[order, 0], prepend=-1))
        drawn = counts[:, order].astype(np.float64)
        n_all = np.add.reduceat(drawn, starts, axis=1)
        n_right = np.add.reduceat(drawn * outcomes[order, 1], starts, axis=1)
        recalls = np.divide(n_right, n_all, out=np.zeros_like(n_all), where=n_all > 0)
        return np.asarray(recalls.sum(axis=1) / (n_all > 0).sum(axis=1))

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """By the paired bootstrap."""
        return BaseTask.compare(self, dense, slim)

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        """As of two that are measured apart from each other, in points."""
        variances = [_variance(np.asarray(rows)) for rows in (dense, slim)]
        return 100 * math.sqrt(sum(variances))


def _variance(rows: np.ndarray) -> float:
    """Of the mean of the classes' shares: each is a proportion of its own samples."""
    classes, place = np.unique(rows[:, 0], return_inverse=True)
    n_all = np.bincount(place)
    shares = np.bincount(place, weights=rows[:, 1]) / n_all
    return float((shares * (1 - shares) / n_all).sum()) / len(classes) ** 2
