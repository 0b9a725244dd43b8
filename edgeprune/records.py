"""The plain records that stages hand to each other; no torch at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeprune.catalog import Entry
from edgeprune.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram
    from torch.utils.data import Dataset

    from edgeprune.export.variants import VariantTable


@dataclass(frozen=True, slots=True)
class Normalization:
    """What is applied to raw inputs before the network: `(x - mean) / std`.

    `mean` and `std` hold one value, or one per index of the first dim after the batch
    (colour channels of an image, columns of a table).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


IDENTITY = Normalization((0.0,), (1.0,))  # inputs go in as they are


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model file says of itself, beside its weights.

    `input_shape` is without the batch, e.g. `(1, 8, 8)`; `training` is how it was trained, which finetuning goes by;
    `module` is the part of the network that it is, e.g. `"backbone"`; `feature_groups` are inputs that come together,
    e.g. `(("accelerometer", (0, 1, 2)),)`, as the user named them.
    What a file does not say is None or empty.
    """

    input_shape: tuple[int, ...]
    arch: str | None = None
    classes: tuple[str, ...] = ()
    normalization: Normalization | None = None
    data: str | None = None
    feature_names: tuple[str, ...] = ()
    training: TrainSettings | None = None
    module: str | None = None
    feature_groups: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded model: the exported program and what is known about it.

    `sha256` is the digest of the program's graph and weights (not of the file), so a model keeps it
    when it is saved in another format. `notes` say what was chosen of the file, for the user to be told.
    """

    program: ExportedProgram
    info: ModelInfo
    sha256: str
    name: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """A data set cut into three splits; each split yields `(x, y)`: x float32 `info.input_shape`, raw; y an int.

    `byte_scale` is what a byte is multiplied by to be a raw value, e.g. 1/255; None where the data are no bytes.
    `measured` is the mean and std of `train` where they were measured: another `normalization` is one that somebody
    states. `notes` say what was decided about the files, for the user to be told.
    """

    name: str
    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    normalization: Normalization
    feature_names: tuple[str, ...] = ()
    byte_scale: float | None = None
    measured: Normalization | None = None
    notes: tuple[str, ...] = ()

    @property
    def states_normalization(self) -> bool:
        """Whether the normalisation was given rather than measured."""
        return self.normalization != self.measured


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of training; accuracies are fractions in [0, 1].

    `n_features` counts the input features that are left at its end, where they are being chosen.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float
    n_features: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Per-sample outcome over one split: `correct` is bool `(n_samples,)`."""

    correct: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction of samples classified correctly, in [0, 1]."""
        return float(self.correct.mean())


@dataclass(frozen=True, slots=True)
class InputFeatures:
    """The input features that a plan keeps.

    `size` counts all features, `keep` lists the kept ones, ascending. `dim` is the input dim that they index
    (1 for channels of an image or columns of a table), or None when they index the flattened input.
    """

    size: int
    keep: tuple[int, ...]
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class FeatureRules:
    """What a choice of input features must respect, by their numbers in the dense network's input.

    `always_keep` lists features that stay, `together` features that stay or go as one: a sensor's axes, say; `names`
    are what those groups are called, where they are.
    """

    always_keep: tuple[int, ...] = ()
    together: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()


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
    """What a network costs and how well it does; accuracies in [0, 1], None where there was no data."""

    macs: int
    params: int
    onnx_bytes: int
    val_accuracy: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class LayerWidth:
    """Output width of one layer before and after."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One pruning step: the share of dense MACs kept and the validation accuracy after finetuning."""

    step: int
    macs_ratio: float
    n_features: int | None
    val_accuracy: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One network of several, from large to small: what it takes in onnxruntime, and how well it does.

    `folder` is where it lies, beside the run's own files; `chosen` marks the one that became the run's slim network.
    """

    folder: str
    macs_ratio: float
    val_accuracy: float | None
    p50_ms: float
    latency_ratio: float
    size_bytes: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class FeatureCount:
    """How well a network did on the validation split with so many input features, on the way to fewer."""

    n_features: int
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a run measured; written as run.json, read by the report.

    `selection` tells, epoch by epoch, how the input features became fewer while the network was trained; `advice` is
    what could be done beside, e.g. how the images can be cropped; `front` lists several networks where they were asked
    for.
    `feature_weights` goes with `features.keep`: the norm of the weights that read each, the largest 1.
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


@dataclass(frozen=True, slots=True)
class LayerZeros:
    """How many of a weight tensor's numbers are exactly zero."""

    name: str
    size: int
    zeros: int


@dataclass(frozen=True, slots=True)
class TrainRecord:
    """What `edgeprune train` did; accuracies in [0, 1].

    `best_epoch` is the one whose weights were kept. `zero_share` is the share of weights that are exactly zero, biases
    and other 1-D parameters not counted; `layers` says it of each tensor.
    """

    out: str
    arch: str
    data: str
    params: int
    epochs: tuple[EpochRecord, ...]
    best_epoch: int
    val_accuracy: float
    test_accuracy: float
    seconds: float
    zero_share: float = 0.0
    layers: tuple[LayerZeros, ...] = ()


@dataclass(frozen=True, slots=True)
class MethodsRecord:
    """What `edgeprune methods` lists."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file that `export` wrote and checked; `parity` is the largest absolute error on the logits, or None.

    `p50_ms` is one inference in its runtime, `ratio` that over the dense network's there; None where it was not timed.
    """

    path: str
    size_bytes: int
    parity: float | None
    p50_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What `edgeprune export` wrote.

    `variants` compares fp32 with int8 and others, `mobile` says what accelerators of phones would take, `web` is the
    folder of the page, `note` what the files want of their inputs.
    """

    model: str
    files: tuple[ExportedFile, ...]
    assumed: tuple[str, ...]
    n_samples: int
    variants: VariantTable | None = None
    mobile: tuple[str, ...] = ()
    web: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ValidateRecord:
    """What `edgeprune validate` measured, both in onnxruntime; `failures` names the missed budgets."""

    accuracy: AccuracyComparison
    parity: float
    dense_bytes: int
    slim_bytes: int
    latency: LatencyComparison
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One row of `edgeprune inspect`: units that stand or fall together.

    `kind` is `channels`, `heads` (of an attention), `features` (of the input) or `locked`; `n_units` counts what can be
    removed one by one; `width` is the number of channels of the layer that makes them; `macs_share` and `params_share`
    are the shares of the network's MACs and parameters that would go with all of them. For locked units `reason` says
    why, beginning with the operator, `where` is the source line that calls it and `remedy` what would unlock them.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    n_units: int
    width: int
    macs_share: float
    exact: bool
    reason: str | None = None
    params_share: float = 0.0
    operator: str | None = None
    where: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class InspectRecord:
    """What `edgeprune inspect` found; `files` are the drawings that it wrote."""

    model: str
    macs: int
    params: int
    groups: tuple[GroupRow, ...]
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfiledKind:
    """What `edgeprune profile` found for one kind of layer.

    `step` is how many channels make a stair; `share` is that of the network's foretold time.
    """

    kind: str
    n_layers: int
    step: int
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """What `edgeprune profile` measured and wrote; `ms` is what the layers take together, one batch.

    `arch` is the architecture that was named, beside a file of weights or, the same as `model`, without one.
    """

    model: str
    out: str
    runtime: str
    cpu: str
    threads: int
    batch_size: int
    n_points: int
    ms: float
    kinds: tuple[ProfiledKind, ...]
    seconds: float
    arch: str | None = None
