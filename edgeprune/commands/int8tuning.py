"""How int8 is finetuned: by the task, on what the network's ONNX file takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgeprune.data import read
from edgeprune.data.inputs import as_arrays
from edgeprune.data.splits import spaced
from edgeprune.export.answers import structure_of
from edgeprune.export.feeds import arrays_of
from edgeprune.export.finetuned import Finetuning
from edgeprune.export.target import Material
from edgeprune.journal.journal import fingerprint, tensors_of
from edgeprune.journal.shared import Results
from edgeprune.progress import Progress
from edgeprune.records import IDENTITY, DataSource
from edgeprune.settings import TrainSettings
from edgeprune.tasks.task import Outcomes, Task
from edgeprune.training import fit

_LR = 1e-3  # as `compress` finetunes a network that does not say how it was trained
_MOST_BYTES = 2**30  # of a split in memory as the file takes it
_AT_ONCE = 256

OutcomesOf = Callable[[Path], Outcomes]


def finetuning(  # noqa: PLR0913 - what is trained on what, how it is judged, who is told and what is kept
    material: Material,
    data: DataSource,
    task: Task,
    epochs: int,
    outcomes: OutcomesOf,
    told: Progress,
    journal: Results | None = None,
) -> Finetuning:
    """How it is finetuned and compared.

    Args:
        outcomes: of a file on the validation split, a sample each, by the task.
        journal: where what was trained is kept, and its state on the way.
    """
    settings = _settings(material, epochs)

    def train(module: nn.Module, teacher: nn.Module) -> None:
        def work() -> bool:
            train, val = (_as_taken(material, split, told) for split in (data.train, data.val))
            taken = replace(data, train=train, val=val, normalization=IDENTITY)
            state = None if journal is None else journal.running()
            fit(module, taken, IDENTITY, settings, told, teacher, checkpoint=state, task=task)
            return True

        if journal is None:
            work()
            return
        journal.kept("finetuning of int8", fingerprint(tensors_of(module), settings), work, module)
        module.eval()

    def better(before: Path, after: Path) -> bool:
        """Whether the whole interval of the drop from the one to the other is a gain."""
        interval = task.compare(outcomes(before), outcomes(after)).drop_interval
        return interval is not None and interval[1] < 0

    return Finetuning(epochs, train, better, structure_of(material.model.program))


def _settings(material: Material, epochs: int) -> TrainSettings:
    trained = material.info.training
    batch_size = TrainSettings().batch_size if trained is None else trained.batch_size
    return TrainSettings(epochs=epochs, lr=_LR, weight_decay=0.0, batch_size=batch_size, device="cpu")


@dataclass(frozen=True, slots=True, eq=False)
class _Taken(Dataset[Any]):
    """Samples in memory in the form in which a file takes them: `x` `(n, ...)` or several by name."""

    x: Tensor | dict[str, Tensor]
    targets: list[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x = self.x[index] if isinstance(self.x, Tensor) else {name: one[index] for name, one in self.x.items()}
        return x, self.targets[index]


def _as_taken(material: Material, split: Dataset[Any], told: Progress) -> _Taken:
    """The samples of a split, evenly spaced ones where they take too much memory."""
    n_samples = len(split)  # type: ignore[arg-type]
    first, _ = _chunk(material, split, np.zeros(1, np.int64))
    size = sum(array.nbytes for array in arrays_of(first))
    count = min(n_samples, max(1, _MOST_BYTES // max(1, size)))
    if count < n_samples:
        told.say(f"int8 is finetuned on {count:,} of {n_samples:,} samples, evenly spaced: more do not fit into memory")
    index = spaced(n_samples, count)
    chunks = [_chunk(material, split, index[start : start + _AT_ONCE]) for start in range(0, count, _AT_ONCE)]
    return _Taken(_joined([feed for feed, _ in chunks]), [target for _, part in chunks for target in part])


def _joined(feeds: Sequence[Any]) -> Tensor | dict[str, Tensor]:
    """The inputs of several batches, one after the other."""
    if isinstance(feeds[0], dict):
        return {name: torch.from_numpy(np.concatenate([feed[name] for feed in feeds])) for name in feeds[0]}
    return torch.from_numpy(np.concatenate(feeds))


def _chunk(material: Material, split: Dataset[Any], index: np.ndarray) -> tuple[Any, list[Any]]:
    """Some samples as the file takes them, and their targets."""
    x, targets = next(read(split, [torch.as_tensor(index)]))
    feed = material.inputs(material.held(as_arrays(x))).file
    return feed, [None if targets is None else targets[k] for k in range(len(index))]
