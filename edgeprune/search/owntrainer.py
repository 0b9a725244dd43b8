"""A trainer by functions of the user's: one trains, one says how good a network is, or both do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgeprune.cost.limits import Aim
from edgeprune.graph.groups import ChannelGraph
from edgeprune.progress import Progress, Silent
from edgeprune.records import Evaluation, Metric
from edgeprune.results import FeatureCount
from edgeprune.search.ownscript import OwnFigure, OwnFinetuning
from edgeprune.search.trainer import Round, Trainer


@dataclass(frozen=True, slots=True, eq=False)
class OwnTrainer:
    """Trains by `finetuning` and judges by `figure`; what is not given is left to `data`, the trainer of a data set.

    Where there is none of these either, nothing is trained, or nothing judged.
    """

    finetuning: OwnFinetuning | None
    figure: OwnFigure | None
    data: Trainer | None = None
    progress: Progress = Silent()  # noqa: RUF009 - it has no state

    @property
    def trains(self) -> bool:
        """Whether weights are trained, by either."""
        return self.finetuning is not None or (self.data is not None and self.data.trains)

    @property
    def selects(self) -> bool:
        """Input features are not chosen by a training that is the user's own."""
        return self.finetuning is None and self.data is not None and self.data.selects

    @property
    def metric(self) -> Metric | None:
        """What networks are judged by, if they are."""
        if self.figure is not None:
            return self.figure.metric
        return None if self.data is None else self.data.metric

    def finetune(self, module: nn.Module, training: Round) -> bool:
        """Train the module's weights on, in place; a training that changes nothing is told."""
        if self.finetuning is None:
            return self.data is not None and self.data.finetune(module, training)
        changed = self.finetuning(module, training)
        module.eval()
        if not changed:
            where = self.finetuning.function.where
            self.progress.say(f"{where} left every weight as it was; it is to train the module that it is given")
        return changed

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        """As the trainer of the data does it; what it says of the way is told where it counts in the same figure."""
        assert self.data is not None
        counts = self.data.select(module, graph, n_features, units)
        return counts if self.figure is None else ()

    def compete(self, module: nn.Module, graph: ChannelGraph, aim: Aim, units: int) -> tuple[FeatureCount, ...]:
        """As the trainer of the data does it, told as by `select`."""
        assert self.data is not None
        counts = self.data.compete(module, graph, aim, units)
        return counts if self.figure is None else ()

    def evaluation(self, module: nn.Module) -> Evaluation | None:
        """How good the module is."""
        if self.figure is not None:
            return Evaluation((), self.figure.value(module), 0.0)
        return None if self.data is None else self.data.evaluation(module)

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        """That of the data's task; of a figure of the user's nothing is known."""
        return 0.0 if self.figure is not None or self.data is None else self.data.standard_error(dense, slim)
