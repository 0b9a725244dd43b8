"""Classification: one output, the scores of the classes; cross entropy is trained for, accuracy is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

from edgeprune.errors import InputError
from edgeprune.graph.specs import output_names
from edgeprune.records import ACCURACY, DataSource, MetricComparison
from edgeprune.tasks.intervals import compare_accuracy
from edgeprune.tasks.outputs import described, n_other_classes, only_tensor, to_array
from edgeprune.tasks.task import BaseTask, Outcomes, Task
from edgeprune.tasks.wanted import or_values

_WITHOUT_DATA = "without data `edgeprune compress --keep-macs` can cut it"
_SCORES = "expected logits (batch, n_classes) as output"
_LABELS = "labels: expected one int a sample, its class"


@dataclass(frozen=True)
class Classification(BaseTask):
    """One class a sample. With `n_classes` labels are looked at whether they are below it.

    `weights` say how much a sample of each class counts in the loss, 1 on the mean of those trained on.
    """

    n_classes: int | None = None
    weights: tuple[float, ...] | None = None
    name = "classification"
    metric = ACCURACY
    takes_shares = True

    def check(self, outputs: Any, data: DataSource) -> None:
        logits = scores(outputs)
        if logits.shape[1] != len(data.classes):
            raise InputError(
                f"data {data.name}: expected outputs (batch, {len(data.classes)}), the scores of the classes, got "
                f"{described(outputs)}{or_values(data.classes) if logits.shape[1] == 1 < len(data.classes) - 1 else ''}"
            )

    def targets(self, raw: Any) -> Tensor:
        """Classes int64 `(n,)`; whole numbers and truth values alone are taken, of any width."""
        if not isinstance(raw, Tensor) or raw.is_floating_point() or raw.is_complex() or raw.numel() != len(raw):
            floats = isinstance(raw, Tensor) and raw.is_floating_point()
            raise InputError(f"{_LABELS}, got {described(raw)}" + ("; floats are the targets of a regression" * floats))
        labels = raw.reshape(len(raw)).to(torch.int64)
        if self.n_classes is not None and len(labels) and not 0 <= labels.min() <= labels.max() < self.n_classes:
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise InputError(f"labels: expected classes from 0 to {self.n_classes - 1}, got {int(wrong)}")
        return labels

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        if self.weights is None:
            return F.cross_entropy(scores(outputs), targets)
        return self._weighted(F.log_softmax(scores(outputs), dim=1), targets) / len(targets)

    def summed_loss(self, outputs: Any, targets: Any, n: int) -> float:
        """In float64: it tells epochs of the same accuracy apart."""
        if self.weights is None:
            return F.cross_entropy(scores(outputs).double(), targets, reduction="sum").item()
        return self._weighted(F.log_softmax(scores(outputs).double(), dim=1), targets).item()

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor:
        """The divergence from the teacher's probabilities.

        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, at temperature 1: finetuning is short, and a
        higher temperature spends it on the classes that the teacher finds unlikely.
        """
        return _divergence(F.log_softmax(scores(outputs), dim=1), teacher_outputs)

    def taught_loss(self, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
        """As the sum of both, with one softmax for the two."""
        got = F.log_softmax(scores(outputs), dim=1)
        divergence = _divergence(got, teacher_outputs)
        if self.weights is not None:
            return self._weighted(got, targets) / len(targets) + divergence
        own = -(targets * got).sum(dim=1).mean() if targets.is_floating_point() else F.nll_loss(got, targets)
        return own + divergence

    def _weighted(self, log_shares: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum over samples, `()`.

        It is divided by their number, not by their weights: the mean over a batch is then that of its parts, wherever
        these are computed.
        """
        weights = torch.tensor(self.weights, dtype=log_shares.dtype, device=log_shares.device)
        if targets.is_floating_point():
            return -(targets * log_shares * weights).sum()
        return F.nll_loss(log_shares, targets, weight=weights, reduction="sum")

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """Whether each sample is right, bool `(n,)`."""
        logits = scores(outputs)
        if len(logits) != len(targets):
            raise InputError(f"outputs: expected the scores of {len(targets)} samples, got {described(outputs)}")
        if isinstance(logits, Tensor) and isinstance(targets, Tensor):
            return to_array(logits.argmax(dim=1) == targets.to(logits.device))
        return np.asarray(to_array(logits).argmax(axis=1) == to_array(targets))

    def value(self, outcomes: Outcomes) -> float:
        """The share of samples that are right, in [0, 1]."""
        return float(np.asarray(outcomes, bool).mean())

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts @ outcomes / counts.shape[1])

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """With the intervals of proportions and McNemar's test, see `compare_accuracy`."""
        return compare_accuracy(np.asarray(dense), np.asarray(slim)).as_metric

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        """As of two accuracies that are measured apart from each other, in points."""
        shares = self.value(dense), self.value(slim)
        return 100 * math.sqrt((shares[1] * (1 - shares[1]) + shares[0] * (1 - shares[0])) / len(dense))

    def agrees(self, want: Any, got: Any) -> float:
        """The share of samples that are given the same class."""
        pair = (to_array(scores(outputs)).argmax(axis=1) for outputs in (want, got))
        return float(np.equal(*pair).mean())

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """The samples whose best class is another; of another output than `(n, n_classes)` none."""
        return n_other_classes(want, got, allowed) if want.ndim == 2 and want.shape[1] > 1 else 0


CLASSIFICATION = Classification()


def is_accuracy(task: Task | None) -> bool:
    """Whether a task is judged by plain accuracy, with its own intervals and test."""
    return isinstance(task, Classification) and task.metric == ACCURACY


def scores(outputs: Any) -> Any:
    """The one output `(n, n_classes)`; raises InputError for another."""
    logits = only_tensor(outputs, _SCORES)
    if logits.ndim != 2:
        raise InputError(f"outputs: {_SCORES}, got {described(outputs)}")
    return logits


def _divergence(got: Tensor, teacher_outputs: Any) -> Tensor:
    with torch.no_grad():
        wanted = F.log_softmax(scores(teacher_outputs), dim=1)
    return F.kl_div(got, wanted, reduction="batchmean", log_target=True)


def check_logits(program: ExportedProgram, data: DataSource, instead: str = _WITHOUT_DATA) -> None:
    """Raise InputError where accuracy cannot be measured: the output is not `(batch, n_classes)`.

    Of several outputs none is taken for the scores. `instead` says what can be done.
    """
    if n_outputs(program) is None:
        raise InputError(
            f"data {data.name}: expected a network with one output (batch, {len(data.classes)}), the scores of the "
            f"classes, got {_outputs_of(program) or 'none'}; {instead}"
        )


def _outputs_of(program: ExportedProgram) -> str:
    """E.g. "(batch, 10, 4)", or "boxes (batch, 4) and scores (batch)"."""
    shapes = [tuple(value.shape) for value in _values(program) if isinstance(value, torch.Tensor)]
    names = output_names(program)
    named = [f"{name} " for name in names] if len(names) == len(shapes) > 1 else [""] * len(shapes)
    sizes = [", ".join(["batch", *map(str, shape[1:])]) for shape in shapes]
    return " and ".join(f"{name}({text})" for name, text in zip(named, sizes, strict=True))


def _values(program: ExportedProgram) -> list[Any]:
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [node.meta.get("val") for node in output.all_input_nodes]


def n_outputs(program: ExportedProgram) -> int | None:
    """The number of classes of a network whose one output is `(batch, n_classes)`; None for another."""
    values = _values(program)
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].dim() != 2:
        return None
    size = values[0].shape[-1]
    return size if isinstance(size, int) else None
