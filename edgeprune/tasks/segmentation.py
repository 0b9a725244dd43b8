"""Segmentation: a class for each pixel; the mean intersection over union is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.errors import InputError
from edgeprune.records import DataSource, Metric
from edgeprune.tasks.outputs import described, n_other_classes, only_tensor, shape_of, to_array, to_tensor
from edgeprune.tasks.task import BaseTask, Guess, Outcomes
from edgeprune.tasks.torchmetric import functional
from edgeprune.tasks.wanted import BINARY
from edgeprune.tasks.wholebatch import batch_count

IGNORED = 255  # what masks of bytes hold where nobody knows
_SCORES = "expected one output (batch, n_classes, height, width), the scores of each pixel's classes"
_NONE = -(2**31)  # no mask holds it


@dataclass(frozen=True)
class Segmentation(BaseTask):
    """Outputs `(n, n_classes, ...)` and masks `(n, ...)` of the same size; a single channel is the logit of class 1.

    Pixels whose mask is `ignore` count nowhere. With `n_classes` masks are looked at whether they are below it.
    """

    ignore: int | None = IGNORED
    n_classes: int | None = None
    name = "segmentation"
    metric = Metric("mIoU")

    @property
    def ignored(self) -> int | None:  # type: ignore[override]  # it is stated
        return self.ignore

    def check(self, outputs: Any, data: DataSource) -> None:
        found = _scores(outputs)
        wanted, n_classes = data.targets.shape, len(data.classes)
        if tuple(found.shape[2:]) != wanted:
            raise InputError(
                f"data {data.name}: expected outputs (batch, {n_classes}, {_sizes(wanted)}) as the masks are "
                f"(batch, {_sizes(wanted)}), got {described(outputs)}"
            )
        if self.ignore is not None and data.classes == BINARY and _n_classes(found) > n_classes:
            raise InputError(
                f"data {data.name}: expected outputs of 2 classes, as the masks hold 0 and 255 alone, got "
                f"{described(outputs)}; segmentation?ignore=none takes 255 for class 1 of those all the same"
            )
        if _n_classes(found) < n_classes:
            raise InputError(
                f"data {data.name}: expected outputs of at least {n_classes} classes, as the masks have, got "
                f"{described(outputs)}"
            )

    def targets(self, raw: Any) -> Tensor:
        """Masks int64 `(n, ...)`."""
        if not isinstance(raw, Tensor) or raw.is_floating_point() or raw.is_complex() or raw.dim() < 2:
            raise InputError(f"masks: expected whole numbers (batch, height, width), got {described(raw)}")
        masks = raw.to(torch.int64)
        if self.n_classes is not None:
            self._check_values(masks, self.n_classes)
        return masks

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Cross entropy over the pixels that count; 0 where none does."""
        scores = _two(self._fitting(outputs, targets))
        total = F.cross_entropy(scores, targets, ignore_index=self._ignore, reduction="sum")
        return total / batch_count((targets != self._ignore).sum())

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor:
        """The divergence from the teacher's probabilities, a mean over pixels."""
        got = F.log_softmax(_two(_scores(outputs)), dim=1)
        with torch.no_grad():
            wanted = F.log_softmax(_two(_scores(teacher_outputs)), dim=1)
        return F.kl_div(got, wanted, reduction="sum", log_target=True) * (got.shape[1] / got.numel())

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """Of each sample and class, int64 `(n, n_classes, 3)`: pixels that are right, wrongly given and missed."""
        scores = self._fitting(outputs, targets)
        predicted, masks = to_tensor(_two(scores)).argmax(dim=1), to_tensor(targets)
        n_classes, counts = _n_classes(scores), masks != self._ignore
        if not counts.any():  # torchmetrics cannot count nothing
            return np.zeros((len(masks), n_classes, 3), np.int64)
        found = functional().multiclass_stat_scores(
            predicted.flatten(1),
            masks.flatten(1),
            n_classes,
            average=None,
            multidim_average="samplewise",
            ignore_index=self.ignore,
            validate_args=False,
        )
        if self.ignore is not None and 0 <= self.ignore < n_classes:  # a class of its own, which does not count either
            found[:, self.ignore] = 0
        right, given, _, missed, _ = found.unbind(dim=-1)
        return torch.stack([right, given, missed], dim=-1).numpy()

    def value(self, outcomes: Outcomes) -> float:
        """The mean over classes of intersection over union; a class that is neither there nor given is left out.

        Raises:
            InputError: no pixel counts.
        """
        rows = np.asarray(outcomes)
        found = float(self.resampled(rows, np.ones((1, len(rows)), np.int64))[0])
        if not np.isfinite(found):
            raise InputError(f"{self.metric.name}: expected pixels that count, got none: all are {self.ignore}")
        return found

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """The class of the most pixels as the answer for each."""
        rows = np.asarray(outcomes)
        n_pixels = rows[:, :, (0, 2)].sum(axis=(0, 2))  # of each class, right or missed
        n_there = int((n_pixels > 0).sum())
        if n_there < 2:
            return None
        return Guess(self.metric, self.value(rows), float(n_pixels.max() / n_pixels.sum() / n_there))

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        n_classes = outcomes.shape[1]
        sums = (counts.astype(np.float64) @ outcomes.reshape(len(outcomes), -1)).reshape(-1, n_classes, 3)
        union = sums.sum(axis=2)
        there = union > 0
        ratios = np.divide(sums[:, :, 0], union, out=np.zeros_like(union), where=there)
        n_there = there.sum(axis=1)
        return np.divide(ratios.sum(axis=1), n_there, out=np.full(len(counts), np.nan), where=n_there > 0)

    def agrees(self, want: Any, got: Any) -> float:
        """The share of pixels that are given the same class."""
        pair = (to_tensor(_two(_scores(outputs))).argmax(dim=1) for outputs in (want, got))
        return float(torch.eq(*pair).double().mean())

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """The pixels of another class; of another output than `(n, n_classes, height, width)` none."""
        if want.ndim < 3:
            return 0
        scores, others = (to_tensor(_two(outputs)).numpy() for outputs in (want, got))
        return n_other_classes(scores, others, allowed)

    @property
    def _ignore(self) -> int:
        return _NONE if self.ignore is None else self.ignore

    def _fitting(self, outputs: Any, targets: Any) -> Any:
        scores = _scores(outputs)
        if (len(scores), *scores.shape[2:]) != tuple(targets.shape):
            raise InputError(f"outputs: expected the size of the masks, {shape_of(targets)}, got {shape_of(scores)}")
        self._check_values(to_tensor(targets), _n_classes(scores))
        return scores

    def _check_values(self, masks: Tensor, n_classes: int) -> None:
        wrong = masks[(masks != self._ignore) & ((masks < 0) | (masks >= n_classes))]
        if len(wrong):
            known = f"from 0 to {n_classes - 1}" + (f", or {self.ignore}" if self.ignore is not None else "")
            raise InputError(f"masks: expected values {known}, got {int(wrong[0])}")


def _scores(outputs: Any) -> Any:
    found = only_tensor(outputs, _SCORES)
    if found.ndim < 3:
        raise InputError(f"outputs: {_SCORES}, got {described(outputs)}")
    return found


def _two(scores: Any) -> Tensor:
    """Scores of two classes where there is one logit: cross entropy and argmax are then those of the logit."""
    found = scores if isinstance(scores, Tensor) else torch.from_numpy(to_array(scores))
    return found if found.shape[1] > 1 else torch.cat([torch.zeros_like(found), found], dim=1)


def _n_classes(scores: Any) -> int:
    return max(2, int(scores.shape[1]))


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
