"""The trainer of a data set: finetunes on its training split and judges by the task on its validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from edgeprune.cost.limits import Aim
from edgeprune.data import Inputs, Share, batches, order, prepared, read
from edgeprune.data.inputs import FloatTypes
from edgeprune.data.ranks import ALONE
from edgeprune.graph.groups import ChannelGraph
from edgeprune.progress import Progress, Silent
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import DataSource, Evaluation, Metric, Normalization
from edgeprune.results import EpochRecord, FeatureCount
from edgeprune.search.tapping import taps_of
from edgeprune.search.trainer import Round
from edgeprune.settings import TrainSettings
from edgeprune.tasks.task import Task
from edgeprune.training import Judge, StateFile, Team, fit, recalibrate
from edgeprune.training.features import Features

_TAYLOR_BATCHES = 64
_TAYLOR_SIZE = 16  # small: squared sums over large batches cancel out
_PROVED = 4  # samples
_SETTLING = 4  # batches
N_PROBED = 1000  # samples
_CPU = torch.device("cpu")


def _nowhere() -> StateFile | None:
    return None


@dataclass(frozen=True, slots=True, eq=False)
class DataTrainer:
    """The data, the task and the settings that finetuning and scoring use.

    `teacher` is the network whose outputs are learned beside the targets, or that are the targets; `dtype` is the type
    of its inputs. `trained_epochs` counts those of the dense network's own training, by the same settings; None
    where that is not known. `running` says where the training that begins keeps its state, if anywhere.
    The processes of a `team` share the samples out: each has a trainer of its own, which does the same as theirs. With
    `by_features` finetuning learns what the teacher's kept channels hold at the ends of stages, too.
    """

    data: DataSource
    normalization: Normalization
    settings: TrainSettings
    task: Task
    teacher: nn.Module | None = None
    dtype: FloatTypes = torch.float32
    progress: Progress = Silent()  # noqa: RUF009 - it has no state
    trained_epochs: int | None = None
    running: Callable[[], StateFile | None] = _nowhere
    team: Team | None = None
    by_features: bool = False

    @property
    def judge(self) -> Judge:
        """The task at work on normalised inputs."""
        return Judge(self.task, self.normalization, self.teacher if self.task.by_reference else None)

    @property
    def trains(self) -> bool:
        """Whether there are epochs to train."""
        return self.settings.epochs > 0

    @property
    def selects(self) -> bool:
        """Input features are chosen by the method `feature-selection`."""
        return self.trains

    @property
    def metric(self) -> Metric:
        """The task's."""
        return self.task.metric

    def finetune(self, module: nn.Module, training: Round) -> bool:
        """Train; a further round sees the samples in another order. With no epochs, estimate batch norm's statistics.

        Returns:
            Whether anything has changed.
        """
        if not self.trains:
            return recalibrate(module, self.data, self.normalization, ranks=self.team or ALONE) > 0
        own = self.settings
        first, last, whole = self._epochs(training)
        settings = replace(
            own,
            epochs=whole,
            seed=own.seed + training.number,
            schedule="constant" if training.wanders else own.schedule,
        )
        self._fit(module, settings, part=(first, last), features=self._features(module, training.plan))
        return True

    def _features(self, module: nn.Module, plan: PruningPlan | None) -> Features | None:
        """What both networks hold in between, where that is learnt; where there is nothing to compare, it is told."""
        if not self.by_features or plan is None:
            return None
        assert isinstance(module, fx.GraphModule)
        assert isinstance(self.teacher, fx.GraphModule)
        taps = taps_of(module, self.teacher, plan)
        if not taps:
            self.progress.say("--distill features: no layer reads what both networks have; by the outputs alone")
        return Features(module, self.teacher, taps) if taps else None

    def _epochs(self, training: Round) -> tuple[int, int, int]:
        """Which epochs are trained, from and to, and of how many, by which the learning rate goes."""
        own = self.settings.epochs * training.units
        whole = max(own, self.trained_epochs or 0) if training.rewinds else own
        first, last = (whole - own + round(share * own) for share in training.part)
        return first, last, whole

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        """Train by the method `feature-selection`; what was left after each epoch."""
        options = {**self.settings.options, "n_features": n_features}
        return self._chosen(module, graph, units, "feature-selection", options)

    def compete(self, module: nn.Module, graph: ChannelGraph, aim: Aim, units: int) -> tuple[FeatureCount, ...]:
        """Train by the method `shared-budget`; what was left of the features after each epoch."""
        return self._chosen(module, graph, units, "shared-budget", self.settings.options, aim)

    def _chosen(  # noqa: PLR0913 - what is trained, how long and how
        self,
        module: nn.Module,
        graph: ChannelGraph,
        units: int,
        method: str,
        options: Mapping[str, Any],
        aim: Aim | None = None,
    ) -> tuple[FeatureCount, ...]:
        # An average of weights has no zeros, by which a method chooses.
        own = replace(self.settings, recipe=replace(self.settings.recipe, ema=0.0))
        settings = replace(own, epochs=units * own.epochs, method=method, options=options)
        epochs = self._fit(module, settings, graph=graph, aim=aim)
        return tuple(FeatureCount(epoch.n_features or 0, epoch.val_value) for epoch in epochs)

    def _fit(  # noqa: PLR0913 - what is trained, how, and towards what
        self,
        module: nn.Module,
        settings: TrainSettings,
        graph: ChannelGraph | None = None,
        aim: Aim | None = None,
        part: tuple[int, int] | None = None,
        features: Features | None = None,
    ) -> tuple[EpochRecord, ...]:
        return fit(
            module,
            self.data,
            self.normalization,
            settings,
            self.progress,
            self.teacher,
            checkpoint=self.running(),
            graph=graph,
            task=self.task,
            aim=aim,
            part=part,
            features=features,
        )

    def evaluation(self, module: nn.Module) -> Evaluation:
        """What the task makes of the validation split."""
        return self.judge.evaluation(module, self.data.val, team=self.team)

    def probed(self, module: nn.Module, settled: bool) -> float:
        """The loss on a share of the validation split; batch norm is estimated again first, but where it is settled."""
        if not settled:
            recalibrate(module, self.data, self.normalization, n_batches=_SETTLING, ranks=self.team or ALONE)
        return self.judge.loss(module, self.data.val, N_PROBED, self.team)

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        """By the task, of the same samples."""
        return self.task.standard_error(dense.outcomes, slim.outcomes)

    def score_batches(self, share: Share = Share()) -> Iterator[tuple[Inputs, Any]]:  # noqa: B008 - it has no state
        """A few normalised training batches with the task's targets, small ones: those that are a share's in turn."""
        n_samples = len(self.data.train)  # type: ignore[arg-type]
        chosen = order(n_samples, _TAYLOR_SIZE, shuffle=True, seed=self.settings.seed)[:_TAYLOR_BATCHES]
        for raw, targets in read(self.data.train, share.in_turn(chosen)):
            x = prepared(raw, self.normalization, _CPU, self.dtype)
            yield x, self.judge.targets(x, targets)

    def some_inputs(self) -> Inputs:
        """The first normalised training inputs."""
        x, _ = next(iter(batches(self.data.train, _PROVED)))
        return prepared(x, self.normalization, _CPU, self.dtype)
