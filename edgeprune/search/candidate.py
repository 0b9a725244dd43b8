"""What a search is asked for, the networks that it comes by, and what it hands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgeprune.cost.device import Device
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import Evaluation, Reconstruction, Vocabulary
from edgeprune.results import FeatureCount, PeakActivations, StepRecord
from edgeprune.settings import MOST_FINETUNINGS, FeatureRules
from edgeprune.tasks.budget import MaxDrop
from edgeprune.units import LatencyLimit


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the network that is found must meet; each may be None.

    `keep_macs` is a share of the dense MACs, `max_latency` the most that one inference may take, `max_bytes` the most
    that the ONNX file may weigh, `max_ram` the most that its live activations may take for one sample, in bytes,
    `max_drop` is what may be lost on the validation split, `n_features` a count of input features and `feature_ratio` a
    share of them. `prune_features` lets features go without a count of their own.
    """

    keep_macs: float | None = None
    max_drop: MaxDrop | None = None
    n_features: int | None = None
    feature_ratio: float | None = None
    prune_features: bool = False
    max_latency: LatencyLimit | None = None
    max_bytes: int | None = None
    max_ram: int | None = None

    @property
    def has_costs(self) -> bool:
        """Whether what the network may cost is said, rather than to be found."""
        return self.keep_macs is not None or self.is_measured

    @property
    def is_measured(self) -> bool:
        """Whether a budget is held by measuring what was cut."""
        return any(limit is not None for limit in (self.max_latency, self.max_bytes, self.max_ram))

    @property
    def features(self) -> bool:
        """Whether input features may go at all."""
        return self.prune_features or self.n_features is not None or self.feature_ratio is not None

    @property
    def features_compete(self) -> bool:
        """Whether features and channels go for the same costs, with no count or drop that holds up the features."""
        return self.prune_features and self.max_drop is None and self.n_features is None

    def counted(self, available: int | None) -> Budgets:
        """The same with the share of the features as a count, of those that the network has."""
        if self.feature_ratio is None or not available:
            return self
        return replace(self, n_features=max(1, round(self.feature_ratio * available)))


@dataclass(frozen=True, slots=True)
class Manner:
    """How a network is made smaller, whatever the budgets.

    The criterion is `named` where a user asked for it. `features` may go where it is set, and `compete` with the
    channels; `rules` say which of them stay, or stay together. `appliable` cuts are those that the class's own forward
    takes; layers in `leave` stay whole, others keep what `layer_ratios` say of the dense network's units. With a
    `device`, units go by the milliseconds that they save on it. `max_finetunings` bounds the training of a search that
    has no cost to reach. With `reconstruct`, what is left of a cut takes over what went, where there are samples.
    `vocabularies` are the ids of token inputs that stay.
    """

    criterion: str = "l2"
    align: int | None = None
    seed: int = 0
    attention: str = "heads"
    features: bool = False
    compete: bool = False
    rules: FeatureRules | None = None
    appliable: bool = False
    leave: tuple[str, ...] = ()
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    device: Device | None = None
    max_finetunings: int = MOST_FINETUNINGS
    reconstruct: bool = False
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A network as a file in its runtime: p50 of one inference beside the dense one's, and the bytes of both.

    `peak` and `dense_peak` are those of their activations; None where no budget asks for them.
    """

    ms: float
    dense_ms: float
    size_bytes: int
    dense_bytes: int
    peak: PeakActivations | None = None
    dense_peak: PeakActivations | None = None


Gauge = Callable[[Program, bool], Measured]  # whether it has to be sure, or once is enough


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network on the way: the program, the plan that leads to it from the dense one, and what it does.

    `val` is what it makes of the validation split; None where nobody has looked. `reconstruction` tells what its layers
    have taken over since it was cut, `criterion` by what its units went where that was found out. Of one network at
    several widths, `within` leads from the widest one to this.
    """

    program: Program
    plan: PruningPlan | None
    macs: int
    n_features: int | None
    val: Evaluation | None
    proof_error: float = 0.0
    reconstruction: Reconstruction | None = None
    within: PruningPlan | None = None
    criterion: str | None = None

    @property
    def val_value(self) -> float | None:
        """The task's metric on the validation split."""
        return None if self.val is None else self.val.value

    def uncut(self) -> Candidate:
        """The same on the way to a step that cuts nothing, which tells nothing of a cut."""
        return replace(self, reconstruction=None, criterion=None)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search came to: the `networks` from large to small, beside the dense one and its channel groups.

    `steps` tells what was tried, `selection` how the input features became fewer.
    """

    dense: Candidate
    networks: tuple[Candidate, ...]
    steps: tuple[StepRecord, ...]
    selection: tuple[FeatureCount, ...]
    graph: ChannelGraph
