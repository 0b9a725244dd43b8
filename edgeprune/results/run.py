"""What the commands report: the records and comparisons that reach the terminal, run.json and the report; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeprune.catalog import Entry
from edgeprune.records import (
    ACCURACY,
    CutVocabulary,
    Figure,
    InputFeatures,
    KeptInput,
    Metric,
    MetricComparison,
    Reconstruction,
)
from edgeprune.results.export import VariantTable
from edgeprune.results.front import FrontPoint, SharedWeights


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of training, by the metric of the task; accuracies are fractions in [0, 1].

    `n_features` counts the input features that are left at its end, where they are being chosen.
    """

    epoch: int
    loss: float
    train_value: float | None
    val_value: float
    n_features: int | None = None
    metric: str = "accuracy"

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: values by the name of the metric."""
        return {"train_value": f"train_{self.metric}", "val_value": f"val_{self.metric}", "metric": None}


@dataclass(frozen=True, slots=True)
class AccuracyComparison:
    """Dense against slim on the same samples; accuracies in [0, 1], drop in points (dense - slim, times 100).

    `mcnemar_p` is the exact McNemar test's two-sided p value.
    """

    dense: float
    slim: float
    dense_interval: tuple[float, float]
    slim_interval: tuple[float, float]
    drop_points: float
    drop_interval: tuple[float, float]
    mcnemar_p: float
    n_samples: int

    @property
    def as_metric(self) -> MetricComparison:
        """The same as that of any metric."""
        both = self.dense_interval, self.slim_interval, self.drop_points, self.drop_interval
        return MetricComparison(ACCURACY, self.dense, self.slim, *both, self.n_samples, self.mcnemar_p)


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Interleaved timing of dense and slim in one runtime; `ratio` is slim / dense of the medians."""

    dense_p50_ms: float
    dense_p95_ms: float
    slim_p50_ms: float
    slim_p95_ms: float
    ratio: float
    ratio_interval: tuple[float, float]
    threads: int
    batch_size: int
    n_runs: int

    @property
    def significant(self) -> bool:
        """Whether the ratio's 95 % interval excludes 1 on the fast side."""
        return self.ratio_interval[1] < 1.0


@dataclass(frozen=True, slots=True)
class NetworkFigures:
    """What a network costs and how well it does by the metric of the run; None where there was no data.

    `peak_bytes` and `peak_int8_bytes` are the most that its live activations take at once, for one sample; None in the
    runs of earlier versions.
    """

    macs: int
    params: int
    onnx_bytes: int
    val_value: float | None = None
    test_value: float | None = None
    peak_bytes: int | None = None
    peak_int8_bytes: int | None = None

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: peaks only where they are known."""
        return dict.fromkeys(name for name in ("peak_bytes", "peak_int8_bytes") if getattr(self, name) is None)


@dataclass(frozen=True, slots=True)
class LayerWidth:
    """Output width of one layer before and after."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One pruning step: the share of dense MACs kept, what the layers took over, and the metric after finetuning.

    `criterion` is the one that its units went by, where that was found out.
    """

    step: int
    macs_ratio: float
    n_features: int | None
    val_value: float | None
    accepted: bool
    reconstruction: Reconstruction | None = None
    criterion: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureCount:
    """How well a network did on the validation split with so many input features, on the way to fewer."""

    n_features: int
    val_value: float


@dataclass(frozen=True, slots=True)
class ChangedSample:
    """A sample of the test split that both networks answer otherwise: its index, what is true and what both said."""

    index: int
    truth: str
    dense: str
    slim: str
    change: float


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A layer that became two, with so many channels in between."""

    name: str
    rank: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a run measured; written as run.json, read by the report.

    `selection` tells, epoch by epoch, how input features became fewer while it was trained; `advice` is what could be
    done beside, e.g. crop the images; `front` lists several networks where they were asked for, which have the weights
    that are `shared` where they are widths of one; `blocks` went whole, `splits` became two layers each.
    `features` and `feature_weights`, as in a `KeptInput`, are those of a network with one input; `inputs` of several.
    `metric` is what the values are of: accuracy, or that of another task, which has a `comparison` and no `accuracy`.
    `changed` are the samples on which both networks are furthest apart, the furthest first, by what `change` says.
    `variants` compares the float file with int8 and others where those were asked for, by their names in the folder.
    """

    command: str
    versions: dict[str, str]
    asked: dict[str, Any]
    assumed: tuple[str, ...]
    model: dict[str, Any]
    data: dict[str, Any] | None
    dense: NetworkFigures
    slim: NetworkFigures
    accuracy: AccuracyComparison | None
    latency: LatencyComparison
    proof_error: float
    proof_exact: bool
    onnx_parity: float
    widths: tuple[LayerWidth, ...]
    features: InputFeatures | None
    steps: tuple[StepRecord, ...]
    feature_weights: tuple[float, ...] = ()
    locked: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    selection: tuple[FeatureCount, ...] = ()
    advice: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    format: str = field(default="edgeprune-run/1")
    metric: Metric = ACCURACY
    comparison: MetricComparison | None = None
    change: str = ""
    changed: tuple[ChangedSample, ...] = ()
    vocabularies: tuple[CutVocabulary, ...] = ()
    inputs: tuple[KeptInput, ...] = ()
    blocks: tuple[str, ...] = ()
    splits: tuple[SplitLayer, ...] = ()
    shared: SharedWeights | None = None
    variants: VariantTable | None = None

    @property
    def compared(self) -> MetricComparison | None:
        """Both networks on the test split, whatever the metric; None without data."""
        return self.comparison if self.accuracy is None else self.accuracy.as_metric

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: of a classification as ever, of another task by its metric."""
        of_classes = self.metric == ACCURACY and self.comparison is None
        others = ("metric", "comparison", "change", "changed") if of_classes else ("accuracy",)
        further = ("vocabularies", "inputs", "blocks", "splits", "shared", "variants")
        return dict.fromkeys((*others, *(name for name in further if not getattr(self, name))))

    @property
    def json_values(self) -> dict[str, str]:
        """What values are called in the records within: by the name of the metric."""
        return values_of(self.metric.name)


def values_of(metric: str) -> dict[str, str]:
    """What the values on both splits are called in JSON."""
    return {f"{split}_value": f"{split}_{metric}" for split in ("val", "test")}


@dataclass(frozen=True, slots=True)
class LayerZeros:
    """How many of a weight tensor's numbers are exactly zero."""

    name: str
    size: int
    zeros: int


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """What `edgeprune train` did, by the metric of the task; accuracies in [0, 1].

    `best_epoch` is the one whose weights were kept. `zero_share` is the share of weights that are exactly zero, biases
    and other 1-D parameters not counted; `layers` says it of each tensor. `beside` are the task's further figures on
    the test split; `task` is what was asked for.
    """

    out: str
    arch: str
    data: str
    params: int
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    val_value: float
    test_value: float
    seconds: float
    zero_share: float = 0.0
    layers: tuple[LayerZeros, ...] = ()
    metric: Metric = ACCURACY
    beside: tuple[Figure, ...] = ()
    task: str | None = None

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: values by the name of the metric."""
        names: dict[str, str | None] = {**values_of(self.metric.name), "task": None}
        return names if self.metric != ACCURACY else {**names, "metric": None, "beside": None}


@dataclass(frozen=True, slots=True)
class MethodsRecord:
    """What `edgeprune methods` lists."""

    entries: tuple[Entry, ...]
