"""What a network makes of a split: its outputs, its metric and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from edgeprune.data import order
from edgeprune.records import Evaluation, Normalization
from edgeprune.results import LayerZeros
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.outputs import only_tensor, to_array
from edgeprune.tasks.task import Task
from edgeprune.training.judging import Judge, outputs_of

if TYPE_CHECKING:
    from edgeprune.training.team import Team

_BATCH = 512


def predict(
    module: nn.Module, split: Dataset[Any], normalization: Normalization, batch_size: int = _BATCH
) -> np.ndarray:
    """The one output `(n_samples, ...)` float32 over a split, in its order."""
    indices = order(len(split), batch_size)  # type: ignore[arg-type]
    answered = outputs_of(module, split, normalization, indices)
    return np.concatenate([to_array(only_tensor(outputs, "expected one output")) for _, outputs, _ in answered])


def evaluate(  # noqa: PLR0913 - a network, what it is asked, and how
    module: nn.Module,
    split: Dataset[Any],
    normalization: Normalization,
    task: Task = CLASSIFICATION,
    *,
    workers: int = 0,
    team: Team | None = None,
    reference: nn.Module | None = None,
) -> Evaluation:
    """What a network makes of each sample of a split, the task's metric over all of them, and the mean loss.

    Args:
        workers: so many processes read the samples ahead.
        team: the processes among which the samples are shared out; each calls this and gets the whole outcome.
        reference: the dense network, for a task whose targets are its answers.
    """
    return Judge(task, normalization, reference).evaluation(module, split, workers, team)


def layer_zeros(module: nn.Module) -> tuple[LayerZeros, ...]:
    """The exact zeros of every weight of two dims or more, tied ones once."""
    weights = [(name, param.detach()) for name, param in module.named_parameters() if param.dim() > 1]
    return tuple(LayerZeros(name, weight.numel(), int((weight == 0).sum())) for name, weight in weights)
