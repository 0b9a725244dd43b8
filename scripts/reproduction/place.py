"""Where a run happens: its data, the machine, the state of an unfinished training; what every recipe trains with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from edgeprune.data import open_data
from edgeprune.data.splits import TensorSplit
from edgeprune.errors import InputError
from edgeprune.formats.architectures import build
from edgeprune.methods import Method
from edgeprune.progress import Progress
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training import StateFile, evaluate, fit, threads_set
from edgeprune.training.placement import is_movable, placed
from edgeprune.training.state import identity

from .experiments import Run

ROOT = Path(__file__).resolve().parent.parent.parent
_QUICK_SAMPLES = {"train": 512, "val": 128, "test": 256}
_HOW_IT_RUNS = ("threads", "workers", "device")


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU threads, and the device as `edgeprune train --device` takes it."""

    threads: int = 1
    device: str = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device that networks are trained on."""
        gpu = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda" if gpu else "cpu")

    @property
    def name(self) -> str:
        """The GPU's name, or "CPU"."""
        return torch.cuda.get_device_name() if self.torch_device.type == "cuda" else "CPU"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What one run has: its data, and how it builds, trains and measures networks.

    `states` is the folder where the state after each epoch is kept, from which an interrupted run goes on.
    """

    run: Run
    data: DataSource
    machine: Machine
    progress: Progress
    states: Path

    def settings(self) -> TrainSettings:
        """How the config has it train, the last epoch's weights kept.

        Raises:
            InputError: the config has something that training cannot be asked for.
        """
        known = {entry.name for entry in fields(TrainSettings)} - {"seed", *_HOW_IT_RUNS}
        for name in self.run.train:
            if name not in known:
                raise InputError(f"{self.run.name}: train: expected {', '.join(sorted(known))}, got {name!r}")
        how = {"threads": self.machine.threads, "device": self.machine.device}
        return TrainSettings(seed=self.run.seed, **{"best_from": 1.0, **self.run.train, **how})

    def build(self, **arguments: Any) -> nn.Module:
        """The run's network with the initial weights of its seed."""
        torch.manual_seed(self.run.seed)
        return build(f"{ROOT}/{self.run.arch}", **arguments)

    def fit(
        self,
        module: nn.Module,
        settings: TrainSettings,
        *,
        stage: str = "train",
        data: DataSource | None = None,
        teacher: nn.Module | None = None,
        finished: Callable[[Method], None] | None = None,
    ) -> None:
        """Train in place, from where an interrupted run came to in this stage."""
        data = data or self.data
        whose = identity(self.run.arch, self.run.data, data, settings)
        state = StateFile(self._state(stage), whose, resume=True)
        self.states.mkdir(parents=True, exist_ok=True)
        self.progress.stage(f"{self.run.name}: {stage}")
        fit(module, data, data.normalization, settings, self.progress, teacher, checkpoint=state, finished=finished)

    def accuracies(self, module: nn.Module, data: DataSource | None = None) -> dict[str, float]:
        """Shares of the val and test split that it has right."""
        data = data or self.data
        device = self.machine.torch_device if is_movable(module) else torch.device("cpu")
        with threads_set(self.machine.threads), placed(module, device):
            found = (evaluate(module, split, data.normalization).value for split in (data.val, data.test))
            return dict(zip(("val_accuracy", "test_accuracy"), found, strict=True))

    def forget(self) -> None:
        """The run is done: nothing is left to go on from."""
        for path in self.states.glob(f"{self.run.digest}-*"):
            path.unlink()

    def _state(self, stage: str) -> Path:
        return self.states / f"{self.run.digest}-{stage}.training"


@functools.cache
def data_of(spec: str, quick: bool) -> DataSource:
    """A data set in memory, opened once; a few samples of it for a quick look."""
    data = open_data(spec)
    return with_splits(data, _first) if quick else data


def in_memory(split: Dataset[Any], where: str) -> TensorSplit:
    """The split, if it is in memory; InputError else."""
    if not isinstance(split, TensorSplit):
        raise InputError(f"{where}: expected data in memory, got a {type(split).__name__}")
    return split


def with_splits(data: DataSource, change: Callable[[str, TensorSplit], TensorSplit]) -> DataSource:
    """The data set with its splits, given by name and all in memory, changed."""
    train, val, test = (change(name, in_memory(getattr(data, name), data.name)) for name in _QUICK_SAMPLES)
    return replace(data, train=train, val=val, test=test)


def _first(name: str, split: TensorSplit) -> TensorSplit:
    count = _QUICK_SAMPLES[name]
    return TensorSplit(split.x[:count], split.y[:count], split.scale)
