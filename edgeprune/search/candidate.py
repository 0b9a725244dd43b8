"""What the search is asked for, what it trains with, and the networks that it comes by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.cost.device import Device
from edgeprune.data import batches, normalize
from edgeprune.graph.capture import Program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import DataSource, FeatureRules, Normalization
from edgeprune.settings import MOST_FINETUNINGS, TrainSettings
from edgeprune.training import evaluate
from edgeprune.units import LatencyLimit

ASSUMED_DROP = 1.0  # points on the validation split, where nothing is said
_TAYLOR_BATCHES = 64
_PROVED = 4  # samples
_TAYLOR_SIZE = 16  # small: squared sums over large batches cancel out


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the search must meet, and how it goes about it.

    `keep_macs` is a share of the dense MACs, `max_latency` the most that one inference may take, `max_bytes` the most
    that the ONNX file may weigh, `max_drop` is in accuracy points on the validation split, `n_features` a count of
    input features and `feature_ratio` a share of them; each may be None. `prune_features` lets features go without a
    count of their own; `rules` say which of them stay, or stay together. `appliable` cuts are those that the class's
    own forward takes; layers in `leave` stay whole. With a `device`, units go by the milliseconds that they save on it.
    `max_finetunings` bounds the training of a search that has no cost to reach.
    """

    keep_macs: float | None
    max_drop: float | None
    n_features: int | None
    feature_ratio: float | None
    prune_features: bool
    criterion: str
    align: int
    seed: int
    attention: str = "heads"
    appliable: bool = False
    leave: tuple[str, ...] = ()
    rules: FeatureRules | None = None
    max_latency: LatencyLimit | None = None
    max_bytes: int | None = None
    device: Device | None = None
    max_finetunings: int = MOST_FINETUNINGS

    @property
    def has_costs(self) -> bool:
        """Whether what the network may cost is said, rather than to be found."""
        return self.keep_macs is not None or self.is_measured

    @property
    def is_measured(self) -> bool:
        """Whether a budget is held by measuring a file."""
        return self.max_latency is not None or self.max_bytes is not None

    @property
    def features(self) -> bool:
        """Whether input features may go at all."""
        return self.prune_features or self.n_features is not None or self.feature_ratio is not None


@dataclass(frozen=True, slots=True, eq=False)
class Trainer:
    """The data and settings that finetuning and scoring use.

    `distill` makes the dense network the teacher; `dtype` is the type of its inputs.
    """

    data: DataSource
    normalization: Normalization
    settings: TrainSettings
    distill: bool = False
    dtype: torch.dtype = torch.float32

    def score_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few normalised training batches for the Taylor criterion."""
        stream = batches(self.data.train, _TAYLOR_SIZE, shuffle=True, seed=self.settings.seed)
        for x, y in itertools.islice(stream, _TAYLOR_BATCHES):
            yield normalize(x.to(self.dtype), self.normalization), y

    def some_inputs(self) -> Tensor:
        """The first normalised training inputs, which a cut is proved on."""
        x, _ = next(iter(batches(self.data.train, _PROVED)))
        return normalize(x.to(self.dtype), self.normalization)

    def val_accuracy(self, module: nn.Module) -> float:
        """Accuracy on the validation split, in [0, 1]."""
        return evaluate(module, self.data.val, self.normalization).accuracy


@dataclass(frozen=True, slots=True)
class Measured:
    """A network as a file in its runtime: p50 of one inference beside the dense one's, and the bytes of both."""

    ms: float
    dense_ms: float
    size_bytes: int
    dense_bytes: int


Gauge = Callable[[Program, bool], Measured]  # whether it has to be sure, or once is enough


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network on the way: the program, the plan that leads to it from the dense one, and what it does."""

    program: Program
    plan: PruningPlan | None
    macs: int
    n_features: int | None
    val_accuracy: float | None
    proof_error: float = 0.0
