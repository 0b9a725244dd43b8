"""What a task is: what is trained for, what is measured and what a budget counts, in one object."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.records import BesideFigure, DataSource, Metric, MetricComparison
from edgeprune.tasks.intervals import Z95, paired_bootstrap

_ROUNDING = 1e-9  # in the metric's unit: a constant answer of the network's own is no better than itself
Outcomes = Sequence[Any] | np.ndarray  # one for each sample, `(n, ...)`


@dataclass(frozen=True, slots=True)
class Guess:
    """What a network comes to in a figure, and what the best answer that is the same for every sample does."""

    metric: Metric
    value: float
    guess: float

    @property
    def is_chance(self) -> bool:
        """Whether the network is no better."""
        return self.metric.drop(self.guess, self.value) >= -_ROUNDING


class Task(Protocol):
    """What the stages ask of a task. Outputs are a network's own: a tensor, or several in dicts, tuples, dataclasses.

    `by_reference` says that the targets are the dense network's answers, rather than those of the data;
    `in_training` that outcomes can be made of what a network gives out while it is trained, too;
    `takes_shares` that the losses take, in place of classes `(n,)`, float32 shares of them `(n, n_classes)`, which sum
    to 1.
    """

    @property
    def name(self) -> str:
        """As it is asked for, e.g. "regression"."""

    @property
    def metric(self) -> Metric:
        """What is measured, with its unit and direction."""

    @property
    def by_reference(self) -> bool:
        """Whether the targets are what the dense network answers."""

    @property
    def in_training(self) -> bool:
        """Whether training tells the metric on the samples that it trains on."""

    @property
    def takes_shares(self) -> bool:
        """Whether what is trained for may be shares of the classes."""

    @property
    def ignored(self) -> int | None:
        """What masks hold where nobody knows, which counts nowhere; None where there is no such value."""

    def check(self, outputs: Any, data: DataSource) -> None:
        """Refuse outputs `(n, ...)` of a few samples that the task cannot take: an InputError in one line."""

    def targets(self, raw: Any) -> Any:
        """The targets of a batch, on the CPU, as `loss` and `outcomes` take them; InputError where they do not fit."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """What training makes small, a mean over the batch, `()`."""

    def summed_loss(self, outputs: Any, targets: Any, n: int) -> float:
        """The loss over `n` samples that are evaluated, summed up."""

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor | None:
        """How far a network is from its teacher, `()`; None where a task does not know."""

    def taught_loss(self, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
        """The loss together with the distillation."""

    def scoring(self, outputs: Any, targets: Any, seed: int) -> Tensor:
        """What Taylor scores take the gradient of, `()`: the loss, where it has one on the dense network."""

    def outcomes(self, outputs: Any, targets: Any) -> Outcomes:
        """What the value is made of, one for each sample, from tensors or arrays."""

    def value(self, outcomes: Outcomes) -> float:
        """The metric over all samples; InputError where it is not a number."""

    def beside(self, outcomes: Outcomes) -> Mapping[str, float]:
        """Further figures to tell beside the metric."""

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """The outcomes beside those of a constant answer; None where nobody knows, or the targets are all the same."""

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """Both on the same samples in the same order, with a paired interval."""

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        """How far the drop between both may be off by chance, in the metric's unit."""

    def agrees(self, want: Any, got: Any) -> float | None:
        """The share of answers that are the same, in [0, 1]; None where answers are no decisions."""

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """How many decisions of one output are others, where `want` decides by more than the error that is allowed."""


class BaseTask(ABC):
    """What most tasks have in common: no distillation of their own, the loss for scores, intervals by bootstrap."""

    name: str
    metric: Metric
    by_reference: bool = False
    in_training: bool = True
    takes_shares: bool = False
    ignored: int | None = None

    @abstractmethod
    def check(self, outputs: Any, data: DataSource) -> None: ...

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor: ...

    @abstractmethod
    def outcomes(self, outputs: Any, targets: Any) -> Outcomes: ...

    @abstractmethod
    def value(self, outcomes: Outcomes) -> float: ...

    @abstractmethod
    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The value `(n_resamples,)` of samples that occur so many times: `counts` int `(n_resamples, n_samples)`."""

    def targets(self, raw: Any) -> Any:
        return raw

    def summed_loss(self, outputs: Any, targets: Any, n: int) -> float:
        return n * self.loss(outputs, targets).item()

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor | None:
        return None

    def taught_loss(self, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
        return with_distillation(self, outputs, targets, teacher_outputs)

    def scoring(self, outputs: Any, targets: Any, seed: int) -> Tensor:
        return self.loss(outputs, targets)

    def beside(self, outcomes: Outcomes) -> Mapping[str, float]:
        return {}

    def guess(self, outcomes: Outcomes) -> Guess | None:
        return None

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        rows = np.asarray(dense), np.asarray(slim)
        return compared(self, dense, slim, lambda counts: [self.resampled(row, counts) for row in rows])

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        return standard_error_of(self.compare(dense, slim))

    def agrees(self, want: Any, got: Any) -> float | None:
        return None

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        return 0


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several batches, one after the other."""
    if parts and all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return [outcome for part in parts for outcome in part]


def mean_share(parts: Sequence[tuple[float | None, int]]) -> float | None:
    """The share over all samples, from that of each batch and its size; None where none is known."""
    known = [(share, n) for share, n in parts if share is not None]
    return sum(share * n for share, n in known) / sum(n for _, n in known) if known else None


def with_distillation(task: Task, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
    """The loss, plus the distillation where the task has one."""
    loss, more = task.loss(outputs, targets), task.distillation(outputs, teacher_outputs)
    return loss if more is None else loss + more


def compared(task: Task, dense: Outcomes, slim: Outcomes, resampled: Any, resamples: int = 0) -> MetricComparison:
    """Both values with intervals by the paired bootstrap: samples are drawn anew, for both networks the same ones.

    Args:
        resampled: of counts `(n_resamples, n_samples)` the values of dense and of slim, `(n_resamples,)` each.
        resamples: how many; 0 leaves it to `paired_bootstrap`.

    Raises:
        InputError: no samples, or different numbers of them.
    """
    n = len(dense)
    if n != len(slim) or n == 0:
        raise InputError(f"expected outcomes of the same samples, got {n} and {len(slim)}")
    values, metric = (task.value(dense), task.value(slim)), task.metric

    def statistic(counts: np.ndarray) -> np.ndarray:
        pair = [np.where(np.isfinite(row), row, value) for row, value in zip(resampled(counts), values, strict=True)]
        return np.stack([*pair, metric.drop(1.0, 0.0) * (pair[0] - pair[1])])

    dense_interval, slim_interval, drop_interval = paired_bootstrap(n, statistic, 3, resamples)
    figures = task.beside(dense), task.beside(slim)
    return MetricComparison(
        metric=metric,
        dense=values[0],
        slim=values[1],
        dense_interval=dense_interval,
        slim_interval=slim_interval,
        drop=metric.drop(*values),
        drop_interval=drop_interval,
        n_samples=n,
        beside=tuple(
            BesideFigure(name, figures[0][name], figures[1][name]) for name in figures[0] if name in figures[1]
        ),
    )


def standard_error_of(found: MetricComparison) -> float:
    """That of the drop, from its 95 % interval; 0 where there is none."""
    if found.drop_interval is None:
        return 0.0
    low, high = found.drop_interval
    return (high - low) / (2 * Z95)


def finite(value: float, metric: Metric) -> float:
    """The value, unless it is no number.

    Raises:
        InputError: NaN or infinity.
    """
    if not np.isfinite(value):
        raise InputError(f"{metric.name}: expected a finite value, got {value}: the outputs hold NaN or infinity")
    return float(value)
