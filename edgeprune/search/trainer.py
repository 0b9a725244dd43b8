"""What a search trains with, and judges by: the seam between its strategies and the data, the loss and the metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from edgeprune.cost.limits import Aim
from edgeprune.data import Inputs, Share
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import Evaluation, Metric
from edgeprune.results import FeatureCount
from edgeprune.tasks.task import Task

_LONGEST = 4  # finetunings' worth: a further round
_WANDERS = 2  # from this round on the learning rate stays, and passes by more networks than it does while it falls


@dataclass(frozen=True, slots=True)
class Round:
    """One training of a candidate: the finetuning after its cut is number 0, the further ones count on.

    `step` is the step of the search, from 1, in which it is trained; `macs` and `share`, of the dense network's, are
    what it costs. `part` of it is trained, from one share of its epochs to another; where it `rewinds`, its learning
    rates are those of the last epochs of the dense network's own training. `plan` is what the candidate was cut by.
    """

    number: int = 0
    step: int = 1
    macs: int = 0
    share: float = 1.0
    part: tuple[float, float] = (0.0, 1.0)
    rewinds: bool = False
    plan: PruningPlan | None = field(default=None, repr=False, compare=False)

    @property
    def effort(self) -> float:
        """The training of it, in finetunings."""
        return self.units * (self.part[1] - self.part[0])

    @property
    def is_underway(self) -> bool:
        """Whether its last epochs are still to come."""
        return self.part[1] < 1

    @property
    def units(self) -> int:
        """How many times as long as a finetuning it takes: 1, 2, 4, 4, ..."""
        return min(2**self.number, _LONGEST)

    @property
    def wanders(self) -> bool:
        """Whether the learning rate stays as it is."""
        return self.number >= _WANDERS


FIRST = Round()


class Samples(Protocol):
    """Samples by which units are scored and cuts are proved."""

    @property
    def task(self) -> Task:
        """What units are scored for."""

    @property
    def trains(self) -> bool:
        """Whether weights are trained on them between the cuts."""

    def score_batches(self, share: Share = ...) -> Iterable[tuple[Inputs, Any]]:
        """A few batches of inputs as the network takes them, with their targets, to score units by.

        All of them, or those that are a process's in turn.
        """

    def some_inputs(self) -> Inputs:
        """A batch as the network takes it, which a cut is proved on."""


class Trainer(Protocol):
    """Trains and judges the networks of one search; all that it is given are the search's own copies."""

    @property
    def trains(self) -> bool:
        """Whether weights are trained at all."""

    @property
    def selects(self) -> bool:
        """Whether it can choose input features while it trains."""

    @property
    def metric(self) -> Metric | None:
        """What networks are judged by; None where they are not."""

    def finetune(self, module: nn.Module, training: Round) -> bool:
        """Train the module's weights on, in place; without training, mend what a cut has spoilt and no weight is.

        Returns:
            Whether anything has changed.
        """

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        """Train as long as so many finetunings, in place, while the input features become as few as asked.

        The weights that read the others are zero then.
        """

    def compete(self, module: nn.Module, graph: ChannelGraph, aim: Aim, units: int) -> tuple[FeatureCount, ...]:
        """Train as long as so many finetunings, in place, while input features and channels go for one budget.

        The weights of what went are zero then; where the aim cannot be reached, all is gone that may go.
        """

    def evaluation(self, module: nn.Module) -> Evaluation | None:
        """How good the module is on the validation split, by the metric; None where there is none."""

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        """How far the drop between both may be off by chance, in the metric's unit; 0 where that is not known."""
