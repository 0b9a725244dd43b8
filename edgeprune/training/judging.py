"""A task at work: what a network makes of a split, by the task's metric, and whether it can be asked at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgeprune.data import Inputs, fed, order, prepared, read
from edgeprune.data.inputs import first_of
from edgeprune.data.ranks import ALONE, in_order
from edgeprune.errors import InputError
from edgeprune.records import DataSource, Evaluation, Normalization
from edgeprune.tasks.task import Outcomes, Task, joined
from edgeprune.training.placement import device_of, float_type, in_eval

if TYPE_CHECKING:
    from edgeprune.training.team import Team

_BATCH = 512
_FEW = 4  # samples that tell whether the outputs fit


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """A task, the normalisation of its inputs and, where its targets are the dense network's answers, that network."""

    task: Task
    normalization: Normalization
    reference: nn.Module | None = None

    def targets(self, x: Inputs, raw: Any) -> Any:
        """The targets of normalised inputs `x` `(n, ...)`, where these are: the data's own, or what the reference says.

        Raises:
            InputError: targets that do not fit the task, or a reference that is needed and not there.
        """
        if not self.task.by_reference:
            return moved(self.task.targets(raw), first_of(x).device)
        if self.reference is None:
            raise InputError(f"task {self.task.name}: expected a trained network whose answers are to be met, got none")
        with in_eval(self.reference), torch.no_grad():
            return fed(self.reference, x)

    def outcomes(
        self, module: nn.Module, split: Dataset[Any], workers: int = 0, team: Team | None = None
    ) -> tuple[Outcomes, float]:
        """What the metric is made of, for each sample of a split in its order, and the mean loss.

        Args:
            workers: so many processes read the samples ahead.
            team: the processes among which the samples are shared out; each calls this and gets the whole outcome.
        """
        n_samples, ranks = len(split), team or ALONE  # type: ignore[arg-type]
        # Whole batches, each by one process: figures over a batch are those of one process, to the last bit.
        indices = ranks.share.in_turn(order(n_samples, _BATCH))

        def judged() -> Iterator[tuple[Outcomes, float]]:
            answered = outputs_of(module, split, self.normalization, indices, workers)
            for index, (x, outputs, targets) in zip(indices, answered, strict=True):
                y = self.targets(x, targets)
                yield self.task.outcomes(outputs, y), self.task.summed_loss(outputs, y, len(index))

        found, loss = [], 0.0
        for part, summed in in_order(ranks, judged()):
            found.append(part)
            loss += summed
        return joined(found), loss / n_samples

    def loss(self, module: nn.Module, split: Dataset[Any], most: int, team: Team | None = None) -> float:
        """The mean loss on at most so many samples of a split, evenly spaced; shared out as by `outcomes`."""
        n_samples = len(split)  # type: ignore[arg-type]
        chosen = torch.linspace(0, n_samples - 1, min(most, n_samples)).round().long()
        ranks, total = team or ALONE, 0.0
        indices = ranks.share.in_turn(chosen.split(_BATCH))
        answered = outputs_of(module, split, self.normalization, indices)
        losses = (
            self.task.summed_loss(outputs, self.targets(x, targets), len(index))
            for index, (x, outputs, targets) in zip(indices, answered, strict=True)
        )
        for loss in in_order(ranks, losses):
            total += loss
        return total / len(chosen)

    def evaluation(
        self, module: nn.Module, split: Dataset[Any], workers: int = 0, team: Team | None = None
    ) -> Evaluation:
        """The outcomes with the metric over all of them.

        Raises:
            InputError: as `targets`, outputs that the task does not take, or a metric that is no number.
        """
        outcomes, loss = self.outcomes(module, split, workers, team)
        return Evaluation(outcomes, self.task.value(outcomes), loss)

    def check(self, module: nn.Module, data: DataSource) -> None:
        """Ask the task everything once, on a few samples, before time is spent on it.

        Raises:
            InputError: outputs or targets that do not fit the task, or a task of the user's that fails.
        """
        few = torch.arange(min(_FEW, len(data.val)))  # type: ignore[arg-type]
        for x, outputs, targets in outputs_of(module, data.val, self.normalization, [few]):
            self.task.check(outputs, data)
            y = replace(self, reference=self.reference or module).targets(x, targets)
            self.task.loss(outputs, y)
            self.task.distillation(outputs, outputs)
            self.task.outcomes(outputs, y)


def outputs_of(
    module: nn.Module,
    split: Dataset[Any],
    normalization: Normalization,
    indices: Sequence[Tensor],
    workers: int = 0,
) -> Iterator[tuple[Inputs, Any, Any]]:
    """The normalised inputs of the samples at each of `indices`, what a network makes of them, and the raw targets."""
    device, dtype = device_of(module), float_type(module)
    with in_eval(module), torch.no_grad():
        for raw, targets in read(split, indices, workers):
            x = prepared(raw, normalization, device, dtype)
            yield x, fed(module, x), targets


def moved(targets: Any, device: torch.device) -> Any:
    """The tensors in dicts, lists and tuples on a device; anything else as it is."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    if isinstance(targets, Mapping):
        return {name: moved(part, device) for name, part in targets.items()}
    if isinstance(targets, (list, tuple)) and not hasattr(targets, "_fields"):
        return type(targets)(moved(part, device) for part in targets)
    return targets
