"""Regression: numbers as targets; the mean absolute error is measured, in their unit."""

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

_ABSOLUTE, _SQUARED, _MEAN, _VARIANCE = range(4)
_LEAST_SPREAD = 1e-12
_R2 = Metric("R2", "", 1.0)


@dataclass(frozen=True)
class Regression(BaseTask):
    """One number a sample, a row of them, or a map: outputs have the shape of the targets.

    `spread` is how far the training targets lie apart, one value or one a column: what is trained for counts in it, so
    that targets of any unit train alike.
    """

    spread: tuple[float, ...] = (1.0,)
    unit: str = ""
    name = "regression"

    @property
    def metric(self) -> Metric:  # type: ignore[override]  # its unit is that of the targets
        return Metric("MAE", self.unit, 1.0, higher_is_better=False)

    def check(self, outputs: Any, data: DataSource) -> None:
        values = _values(outputs)
        if _columns(tuple(values.shape[1:])) != _columns(data.targets.shape):
            raise InputError(
                f"data {data.name}: expected outputs like the targets, {_batched(data.targets.shape)}, got "
                f"{described(outputs)}"
            )

    def targets(self, raw: Any) -> Tensor:
        """Floats `(n, ...)`, all of them finite."""
        if not isinstance(raw, Tensor) or raw.is_complex():
            raise InputError(f"targets: expected numbers (batch, ...), got {described(raw)}")
        values = raw if raw.is_floating_point() else raw.to(torch.float32)
        if not values.isfinite().all():
            raise InputError("targets: expected finite numbers, got NaN or infinity")
        return values

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Huber's, which is squared within the targets' spread and absolute beyond: outliers do not rule."""
        got, wanted = _pair(outputs, targets)
        return self._distance(got, wanted)

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor:
        """The same distance from what the teacher answers."""
        got, wanted = _pair(outputs, _values(teacher_outputs))
        return self._distance(got, wanted.detach())

    def _distance(self, got: Tensor, wanted: Tensor) -> Tensor:
        spread = torch.tensor(self.spread, dtype=got.dtype, device=got.device).clamp(min=_LEAST_SPREAD)
        spread = spread.reshape(-1, *(1,) * (got.dim() - 2))
        return F.smooth_l1_loss(got / spread, wanted.to(got.dtype) / spread)

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """Of each sample and column, float64 `(n, n_columns, 4)`: the means of the absolute and of the squared error,
        the mean of the targets and their variance within the sample."""
        got, wanted = (to_array(part).astype(np.float64) for part in _pair(outputs, targets))
        got, wanted = (part.reshape(*part.shape[:2], -1) for part in (got, wanted))
        error = np.abs(got - wanted)
        parts = error.mean(axis=2), np.square(error).mean(axis=2), wanted.mean(axis=2), wanted.var(axis=2)
        return np.stack(parts, axis=2)

    def value(self, outcomes: Outcomes) -> float:
        """The mean absolute error over samples, columns and positions."""
        return finite(float(np.asarray(outcomes)[:, :, _ABSOLUTE].mean()), self.metric)

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts @ outcomes[:, :, _ABSOLUTE].mean(axis=1) / counts.shape[1])

    def beside(self, outcomes: Outcomes) -> dict[str, float]:
        """RMSE, and R2 as the mean over columns; of a constant column it is 0, or 1 where every answer is right."""
        rows = np.asarray(outcomes)
        squared, total = _squares(rows)
        found = {"RMSE": float(np.sqrt(squared.mean()))}
        if len(rows) > 1:
            found["R2"] = float(np.mean([_explained(*pair) for pair in zip(squared, total, strict=True)]))
        return found

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """R2, of which the mean of the targets has 0, over the columns that are not constant."""
        squared, total = _squares(np.asarray(outcomes))
        differs = total > 0
        if not differs.any():
            return None
        return Guess(_R2, finite(float(np.mean(1 - squared[differs] / total[differs])), _R2), 0.0)


def _squares(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean squared error of each column, and that of its mean as the answer, `(n_columns,)` each."""
    means = rows[:, :, _MEAN]
    total = (rows[:, :, _VARIANCE] + np.square(means - means.mean(axis=0))).mean(axis=0)
    return rows[:, :, _SQUARED].mean(axis=0), total


def _explained(squared: float, total: float) -> float:
    if total > 0:
        return 1 - squared / total
    return 1.0 if squared == 0 else 0.0


def _values(outputs: Any) -> Any:
    values = only_tensor(outputs, "expected one output, the values")
    if values.ndim == 0:
        raise InputError(f"outputs: expected values (batch, ...), got {described(outputs)}")
    return values


def _pair(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Both as `(n, n_columns, ...)`; `(n,)` and `(n, 1)` are the same. Raises InputError where they do not fit."""
    got = _values(outputs)
    shapes = tuple(got.shape), tuple(targets.shape)
    if shapes[0][0] != shapes[1][0] or _columns(shapes[0][1:]) != _columns(shapes[1][1:]):
        raise InputError(f"outputs: expected the shape of the targets, {shape_of(targets)}, got {shape_of(got)}")
    return got.reshape(len(got), *_columns(shapes[0][1:])), targets.reshape(len(got), *_columns(shapes[1][1:]))


def _columns(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape or (1,)


def _batched(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['batch', *map(str, shape)])})"
