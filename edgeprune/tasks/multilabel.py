"""Multilabel: flags, each of which may hold; macro average precision is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.errors import InputError
from edgeprune.records import DataSource, Metric
from edgeprune.tasks.outputs import described, only_tensor, shape_of, to_array
from edgeprune.tasks.task import BaseTask, Guess, Outcomes, finite
from edgeprune.tasks.torchmetric import functional

_SCORES = "expected one output (batch, n_labels), a logit for each label"


@dataclass(frozen=True)
class Multilabel(BaseTask):
    """Outputs are logits `(n, n_labels)`: above 0 a label holds rather than not."""

    name = "multilabel"
    metric = Metric("mAP")

    def check(self, outputs: Any, data: DataSource) -> None:
        logits = _logits(outputs)
        if tuple(logits.shape[1:]) != data.targets.shape:
            labels = ", ".join(map(str, data.targets.shape))
            raise InputError(
                f"data {data.name}: expected outputs like the targets, (batch, {labels}), got {described(outputs)}"
            )

    def targets(self, raw: Any) -> Tensor:
        """Float32 rows `(n, n_labels)` of 0 and 1."""
        if not isinstance(raw, Tensor) or raw.dim() != 2 or not bool(((raw == 0) | (raw == 1)).all()):
            raise InputError(f"targets: expected rows (batch, n_labels) of 0 and 1, got {_told(raw)}")
        return raw.to(torch.float32)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        logits = _fitting(outputs, targets)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor:
        """Cross entropy with the teacher's probabilities, less their own entropy: 0 where both agree."""
        teacher = _logits(teacher_outputs).detach()
        logits = _fitting(outputs, teacher)
        wanted = torch.sigmoid(teacher)
        own = F.binary_cross_entropy_with_logits(teacher, wanted)
        return F.binary_cross_entropy_with_logits(logits, wanted) - own

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """Logits and flags of each sample, float64 `(n, 2, n_labels)`."""
        logits = _fitting(outputs, targets)
        return np.stack([to_array(part).astype(np.float64) for part in (logits, targets)], axis=1)

    def value(self, outcomes: Outcomes) -> float:
        """The mean over labels of the average precision, as torchmetrics takes it: 0 for a label that no sample has.

        Raises:
            InputError: no sample has any label, or logits are not finite.
        """
        rows = np.asarray(outcomes)
        if not rows[:, 1].any():
            raise InputError(f"{self.metric.name}: expected a label that some sample has, got none in {len(rows):,}")
        finite(float(rows[:, 0].sum()), self.metric)
        return float(sum(per_label(rows).tolist()) / rows.shape[2])

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """A constant score has the share of samples with a label as its average precision; labels that differ count."""
        rows = np.asarray(outcomes)
        shares = rows[:, 1].mean(axis=0)
        differs = (shares > 0) & (shares < 1)
        if not differs.any():
            return None
        return Guess(self.metric, float(per_label(rows[:, :, differs]).mean()), float(shares[differs].mean()))

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """A label that none of the samples drawn has is left out, unless none of all has it: then it is 0 in each."""
        present = outcomes[:, 1].any(axis=0)
        per_label = np.array([_weighted(outcomes[:, :, label], counts) for label in np.flatnonzero(present)])
        known = np.isfinite(per_label)
        sums, n_known = np.where(known, per_label, 0.0).sum(axis=0), known.sum(axis=0)
        mean = np.divide(sums, n_known, out=np.full(len(counts), np.nan), where=n_known > 0)
        return mean * present.mean()

    def agrees(self, want: Any, got: Any) -> float:
        """The share of labels that hold, or do not, with both."""
        pair = (to_array(_logits(outputs)) > 0 for outputs in (want, got))
        return float(np.equal(*pair).mean())

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """The labels that hold with one and not with the other; of another output than `(n, n_labels)` none."""
        return int((((want > 0) != (got > 0)) & (abs(want) > allowed)).sum()) if want.ndim == 2 else 0


def per_label(outcomes: Outcomes) -> np.ndarray:
    """The average precision of each label, float64 `(n_labels,)`; 0 for one that no sample has."""
    rows = np.asarray(outcomes)
    found = np.zeros(rows.shape[2])
    for label in np.flatnonzero(rows[:, 1].any(axis=0)):
        found[label] = _average_precision(rows[:, :, label])
    return found


def _average_precision(rows: np.ndarray) -> float:
    """By torchmetrics, of logits and flags `(n, 2)` of one label that some sample has."""
    # Ranks stand for the logits: torchmetrics would squash these, and large ones would become equal.
    ranks = np.unique(rows[:, 0], return_inverse=True)[1] / max(1, len(rows))
    found = functional().binary_average_precision(
        torch.from_numpy(ranks), torch.from_numpy(rows[:, 1].astype(np.int64))
    )
    return float(found)


def _weighted(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Average precision `(n_resamples,)` of samples that occur `counts` times; NaN where none of them has the label."""
    order = np.argsort(-rows[:, 0], kind="stable")
    logits, flags, weights = rows[order, 0], rows[order, 1], counts[:, order]
    ends = np.append(np.flatnonzero(np.diff(logits)), len(logits) - 1)  # of the samples of one score
    right, seen = np.cumsum(weights * flags, axis=1)[:, ends], np.cumsum(weights, axis=1)[:, ends]
    gained = np.diff(right, axis=1, prepend=0)
    precision = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
    n_right = right[:, -1]
    total = (gained * precision).sum(axis=1)
    return np.divide(total, n_right, out=np.full(len(counts), np.nan), where=n_right > 0)


def _logits(outputs: Any) -> Any:
    logits = only_tensor(outputs, _SCORES)
    if logits.ndim != 2:
        raise InputError(f"outputs: {_SCORES}, got {described(outputs)}")
    return logits


def _fitting(outputs: Any, targets: Any) -> Any:
    logits = _logits(outputs)
    if tuple(logits.shape) != tuple(targets.shape):
        raise InputError(f"outputs: expected the shape of the targets, {shape_of(targets)}, got {shape_of(logits)}")
    return logits


def _told(raw: Any) -> str:
    if isinstance(raw, Tensor) and raw.dim() == 2:
        wrong = raw[(raw != 0) & (raw != 1)]
        return f"{described(raw)} with {wrong[0].item():g}"
    return described(raw)
