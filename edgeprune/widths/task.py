"""The task of several widths that are trained as one: the widest by the task, the others by what the widest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_map

from edgeprune.records import DataSource, Metric, MetricComparison
from edgeprune.tasks.task import Guess, Outcomes, Task, joined


class Sandwich:
    """A task whose outputs are a tuple of those of each width, from wide to narrow.

    The widest is trained for the task itself; the others for what it answers (in-place distillation, Yu and Huang,
    arXiv 1903.05134), or for the targets where the task knows no distillation. The loss and the value are means over
    the widths, so that the epoch that is kept is good for all of them.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.by_reference, self.in_training = task.by_reference, False
        self.takes_shares, self.ignored = task.takes_shares, task.ignored

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def metric(self) -> Metric:
        """The task's."""
        return self.task.metric

    def check(self, outputs: Any, data: DataSource) -> None:
        """As the task, for each width."""
        for own in outputs:
            self.task.check(own, data)

    def targets(self, raw: Any) -> Any:
        """The task's."""
        return self.task.targets(raw)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over the widths."""
        return self._mean(self.task.loss(outputs[0], targets), outputs, targets)

    def taught_loss(self, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
        """The same where a teacher stands beside the targets, for the widest."""
        return self._mean(self.task.taught_loss(outputs[0], targets, teacher_outputs), outputs, targets)

    def _mean(self, widest: Tensor, outputs: Any, targets: Any) -> Tensor:
        wanted = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs[0])
        total = widest
        for own in outputs[1:]:
            distilled = self.task.distillation(own, wanted)
            total = total + (self.task.loss(own, targets) if distilled is None else distilled)
        return total / len(outputs)

    def summed_loss(self, outputs: Any, targets: Any, n: int) -> float:
        """The mean over the widths of the task's own loss, summed over the samples."""
        return float(np.mean([self.task.summed_loss(own, targets, n) for own in outputs]))

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor | None:
        """The widest's."""
        return self.task.distillation(outputs[0], teacher_outputs)

    def scoring(self, outputs: Any, targets: Any, seed: int) -> Tensor:
        """The widest's."""
        return self.task.scoring(outputs[0], targets, seed)

    def outcomes(self, outputs: Any, targets: Any) -> Outcomes:
        """For each sample a tuple of the outcomes of every width."""
        return list(zip(*(self.task.outcomes(own, targets) for own in outputs), strict=True))

    def value(self, outcomes: Outcomes) -> float:
        """The mean over the widths."""
        return float(np.mean([self.task.value(own) for own in self._apart(outcomes)]))

    def beside(self, outcomes: Outcomes) -> Mapping[str, float]:
        """The widest's."""
        return self.task.beside(self._apart(outcomes)[0])

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """The widest's."""
        return self.task.guess(self._apart(outcomes)[0])

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """The widest's."""
        return self.task.compare(self._apart(dense)[0], self._apart(slim)[0])

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        """The widest's."""
        return self.task.standard_error(self._apart(dense)[0], self._apart(slim)[0])

    def agrees(self, want: Any, got: Any) -> float | None:
        """The task's."""
        return self.task.agrees(want, got)

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """The task's."""
        return self.task.n_changed(want, got, allowed)

    def _apart(self, outcomes: Outcomes) -> Sequence[Outcomes]:
        """The outcomes of each width, as the task gives them: arrays where they are numbers or rows of them."""
        columns = list(zip(*outcomes, strict=True))
        is_array = isinstance(columns[0][0], (np.ndarray, np.generic))
        return [np.stack(column) if is_array else joined([list(column)]) for column in columns]
