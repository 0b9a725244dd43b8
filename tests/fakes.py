"""A search of which nothing is real but its decisions: nothing is cut or trained, and the trainer says what it is told.

The network is a hidden layer of so many units over so many input features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from edgeprune.errors import BudgetError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.progress import Silent
from edgeprune.records import ACCURACY, Evaluation, Metric
from edgeprune.results import FeatureCount
from edgeprune.search.candidate import Budgets, Candidate, Found, Manner, Measured
from edgeprune.search.costs import Costs
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy
from edgeprune.search.trainer import Round, Trainer
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.task import Outcomes

WIDTH, N_FEATURES, N_CLASSES = 32, 12, 3


class Net(nn.Module):
    """A network of no weights but its sizes; it is its own program."""

    def __init__(self, width: int = WIDTH, n_features: int = N_FEATURES) -> None:
        super().__init__()
        self.register_buffer("sizes", torch.tensor([width, n_features]))

    @property
    def width(self) -> int:
        return int(self.sizes[0])

    @property
    def n_features(self) -> int:
        return int(self.sizes[1])

    @property
    def macs(self) -> int:
        return self.width * (self.n_features + N_CLASSES)

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """As a program has it."""
        return {"hidden": torch.zeros(self.width, self.n_features)}

    def own_module(self) -> Net:
        return Net(self.width, self.n_features)

    def frozen_module(self) -> Net:
        return self


@dataclass(frozen=True)
class Plan:
    width: int
    n_features: int
    groups: tuple[Any, ...] = ()
    aligned: int | None = None

    def to_json(self) -> str:
        return f"{self.width} units over {self.n_features} features"


def candidate(width: int, n_features: int, groups: tuple[Any, ...] = ()) -> Candidate:
    net, plan = Net(width, n_features), Plan(width, n_features, groups)
    return Candidate(cast(Any, net), cast(Any, plan), net.macs, n_features, None)


class EveryCost(Costs):
    """All that it costs goes with the MACs."""

    def _modelled(self, candidate: Candidate, name: str) -> float:
        return float(candidate.macs)


class FakeCutter:
    """Plans as the planner does, in multiples of `align` and to no less than that."""

    least_features = 1
    allots = measures_cuts = False

    def __init__(self, manner: Manner, dead: int = 0) -> None:
        self.manner, self.dead = manner, dead
        self.graph = cast(ChannelGraph, SimpleNamespace(groups=[SimpleNamespace(name="hidden")]))
        self.dense = replace(candidate(WIDTH, N_FEATURES), plan=None)
        self.costs = EveryCost(self.dense, self.graph_of, None)
        self.n_cuts = 0

    def graph_of(self, _: Candidate) -> ChannelGraph:
        return self.graph

    def pruned(self, best: Candidate, shares: Shares, n_features: int | None = None) -> Candidate:
        self.n_cuts += 1
        net = cast(Any, best.program)
        share = min((share for share in shares.named.values() if share is not None), default=1.0)
        align = self.manner.align
        width = int(net.width * share + 1e-9) // align * align
        if width < align:
            raise BudgetError("groups at their least width")
        return candidate(width, n_features or net.n_features)

    trial = pruned

    def kept(self, best: Candidate, shares: Shares) -> Plan:
        self.n_cuts -= 1
        return cast(Any, self.pruned(best, shares).plan)

    def without_dead(self) -> Candidate | None:
        left = WIDTH - self.dead
        return candidate(left, N_FEATURES, (SimpleNamespace(before=WIDTH, after=left),)) if self.dead else None

    def without_unread(self, best: Candidate, trained: Net) -> Candidate:
        return candidate(trained.width, trained.n_features)

    def retrained(self, candidate: Candidate, module: Net) -> Candidate:
        return replace(candidate, program=cast(Any, module))

    def made_by(self, plan: Plan) -> Candidate:
        return replace(candidate(plan.width, plan.n_features), plan=cast(Any, plan))


@dataclass
class Told(Silent):
    """What is said, apart from the line that each step ends with."""

    lines: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        (self.steps if re.match(r"step \d+: ", message) else self.lines).append(message)


@dataclass(frozen=True)
class Doubting(Classification):
    """Drops of any metric may be off by so much."""

    error: float = 0.0
    metric: Metric = ACCURACY

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        return self.error


@dataclass
class FakeTrainer:
    """Trains nothing, and says how good each network is that it is shown."""

    judge: Callable[[Net], float]
    trains: bool = True
    error: float = 0.5
    metric: Metric = ACCURACY
    rounds: list[int] = field(default_factory=list)
    selections: list[int] = field(default_factory=list)

    def finetune(self, module: nn.Module, training: Round) -> bool:
        self.rounds.append(training.number)
        return False

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        assert isinstance(module, Net)
        self.selections.append(n_features)
        module.sizes[1] = n_features
        return (FeatureCount(n_features, 1.0),)

    def evaluation(self, module: nn.Module) -> Evaluation:
        assert isinstance(module, Net)
        return Evaluation((), self.judge(module), 0.0)

    @property
    def selects(self) -> bool:
        return self.trains

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        return self.error

    @property
    def units(self) -> float:
        """What it was asked to train, in finetunings."""
        return sum(Round(number).units for number in self.rounds) + 2 * len(self.selections)


def says(*values: float) -> Callable[[Net], float]:
    """Each value in turn, of the dense network first; the last stays."""
    left: Iterator[float] = iter(values)
    return lambda _: next(left, values[-1])


def falls_below(width: int) -> Callable[[Net], float]:
    """As good as dense down to so many units."""
    return lambda net: 0.99 if net.width >= width else 0.5


@dataclass
class Searched:
    """One search, what came of it, and what was said of it."""

    step: Step
    trainer: FakeTrainer
    budgets: Budgets
    strategy: Strategy

    def __call__(self) -> Found:
        return self.strategy.search(self.step, self.budgets)

    @property
    def said(self) -> list[str]:
        assert isinstance(self.step.progress, Told)
        return self.step.progress.lines

    @property
    def ratios(self) -> list[float]:
        return [record.macs_ratio for record in self.step.records]

    @property
    def accepted(self) -> list[bool]:
        return [record.accepted for record in self.step.records]


def searched(
    strategy: Strategy,
    judge: Callable[[Net], float] | FakeTrainer,
    budgets: Budgets,
    gauge: Callable[[Any, bool], Measured] | None = None,
    *,
    dead: int = 0,
    **manner: Any,
) -> Searched:
    fake = judge if isinstance(judge, FakeTrainer) else FakeTrainer(judge)
    trainer: Trainer = fake  # a fake is a trainer, by its methods alone
    cutter = FakeCutter(Manner(**{"align": 4, **manner}), dead)
    step = Step(cast(Cutter, cutter), trainer, Told(), gauge)
    return Searched(step, fake, budgets.counted(N_FEATURES), strategy)


def width(network: Candidate) -> int:
    return int(cast(Any, network.program).width)
