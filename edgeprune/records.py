"""The plain records that stages hand to each other; no torch at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.utils.data import Dataset


@dataclass(frozen=True, slots=True)
class Normalization:
    """What is applied to raw inputs before the network: `(x - mean) / std`.

    `mean` and `std` hold one value, or one per index of `dim`, the batch counted: 1 for colour channels of an image and
    columns of a table, 2 for the sensors of `(batch, steps, sensors)`. `inputs` are those of a network with named
    inputs, in place of all three; an input without one goes in as it is.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    inputs: tuple[tuple[str, Normalization], ...] = ()
    dim: int = 1

    @property
    def count(self) -> int:
        """How many indices of `dim` it tells apart; 1 where one value serves all."""
        return max(len(self.mean), len(self.std))

    def of(self, name: str) -> Normalization | None:
        """That of a named input; None where it goes in as it is."""
        return dict(self.inputs).get(name)


IDENTITY = Normalization((0.0,), (1.0,))  # inputs go in as they are


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model file says of itself, beside its weights.

    `input_shape` is without the batch, e.g. `(1, 8, 8)`; `training` is how it was trained, which finetuning goes by;
    `module` is the part of the network that it is, e.g. `"backbone"`; `feature_groups` are inputs that come together,
    e.g. `(("accelerometer", (0, 1, 2)),)`, as the user named them, counted over all inputs in their order;
    `input_feature_names` are those of several inputs, by input; `task` is the one that was asked for.
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
    task: str | None = None
    input_feature_names: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Templates:
    """Templates `(n_templates, *tile)`, and by name the coefficients `(n_tiles, n_templates)` of weights made of them.

    A weight is laid out in tiles along its first two dims, row by row.
    """

    templates: Tensor
    coefficients: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A loaded model: the exported program and what is known about it.

    `sha256` is the digest of the program's graph and weights (not of the file), so a model keeps it
    when it is saved in another format. `notes` say what was chosen of the file, for the user to be told; `shared` has
    the templates of weights that are mixtures of them, which the program has in full.
    """

    program: ExportedProgram
    info: ModelInfo
    sha256: str
    name: str
    notes: tuple[str, ...] = ()
    shared: tuple[Templates, ...] = ()


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One named input of a network, or of the samples of a data set.

    `shape` is without the batch, None where a size is free. `dtype` is PyTorch's, e.g. `"int64"`: a data set's floats
    are `"float32"`. `least` and `largest` are the numbers that whole ones were seen to lie between. `byte_scale` is
    what a byte is multiplied by, None where the data are no bytes. `feature_dim` and `feature_names` are as of a
    DataSource. `numbers` are those of an input of an ONNX file that is to be a constant.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    least: int | None = None
    largest: int | None = None
    byte_scale: float | None = None
    feature_dim: int | None = None
    feature_names: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether it holds quantities, which are normalised; whole numbers and truth values never are."""
        return self.dtype.startswith(("float", "bfloat"))


TargetKind = Literal["classes", "values", "flags", "masks", "none", "other"]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the targets of a data set are.

    `kind` is `"classes"` (an int a sample), `"values"` (floats), `"flags"` (a row of 0 and 1), `"masks"` (an int a
    pixel), `"none"`, or `"other"`, which only the user's own task knows. `shape` is that of one sample. `spread` is the
    standard deviation of values on the train split, one for all or one a column.
    """

    kind: TargetKind = "classes"
    shape: tuple[int, ...] = ()
    spread: tuple[float, ...] = ()


CLASSES = Targets()


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """A data set cut into three splits; each split yields `(x, y)`: x float32 `info.input_shape`, raw; y a target.

    Where there are `inputs`, x is a dict of them by name, each of its own shape and type; `input_shape` is () then.

    `classes` are the names of the classes, or of the flags, in the order of their numbers.

    `byte_scale` is what a byte is multiplied by to be a raw value, e.g. 1/255; None where the data are no bytes.
    `measured` is the mean and std of `train` where they were measured: another `normalization` is one that somebody
    states. `notes` say what was decided about the files, for the user to be told. `preparation` is what makes raw
    values of a file, e.g. an image's size, as features.json states it; empty where the files hold them.

    `feature_dim` is the dim of a batch of x along which its features (channels, sensors, columns) lie, as the data or
    the network that takes them say; None where neither does.
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
    targets: Targets = CLASSES
    inputs: tuple[InputInfo, ...] = ()
    preparation: Mapping[str, Any] = field(default_factory=dict)
    feature_dim: int | None = None

    @property
    def input_feature_names(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The names of features by input, as of a ModelInfo."""
        return tuple((info.name, info.feature_names) for info in self.inputs if info.feature_names)

    @property
    def states_normalization(self) -> bool:
        """Whether the normalisation was given rather than measured."""
        return self.normalization != self.measured


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a network makes of one split: the outcome of each sample, the task's metric over all, and the mean loss."""

    outcomes: Sequence[Any] | np.ndarray
    value: float
    loss: float


@dataclass(frozen=True, slots=True)
class InputFeatures:
    """The input features that a plan keeps.

    `size` counts all features, `keep` lists the kept ones, ascending. `dim` is the input dim that they index
    (1 for channels of an image or columns of a table, 2 for the sensors of `(batch, steps, sensors)`), or None when
    they index the flattened input.
    """

    size: int
    keep: tuple[int, ...]
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class KeptInput:
    """What is kept of one of several inputs, `shape` without the batch; all features where none of them went.

    `weights` goes with `features.keep`: the norm of the weights that read each, the largest 1.
    """

    input: str
    shape: tuple[int, ...]
    features: InputFeatures
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids that a plan keeps of a token input: `keep[new]` is the old id, ascending.

    `size` counts all ids that the dense network takes, 0 up to but without it. A cut id is an error where it comes in,
    or stands for the kept id `unknown`. `tables` are the tensors whose rows go, and the dim that the rows are along.
    """

    size: int
    keep: tuple[int, ...]
    unknown: int | None = None
    tables: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CutVocabulary:
    """How many ids of an input are kept, what stands for the others, and the bytes of the tables that they look up."""

    input: str
    n_ids: int
    n_kept: int
    unknown: int | None
    tables: tuple[str, ...]
    dense_bytes: int
    slim_bytes: int


@dataclass(frozen=True, slots=True)
class TokenRow:
    """An input of tokens: how many ids it takes, the tables that they look up, and why these must stay, where they do.

    `params` counts what the tables hold.
    """

    input: str
    n_ids: int
    tables: tuple[str, ...]
    params: int
    reason: str | None = None


POINTS = "points"  # of a share in [0, 1]


@dataclass(frozen=True, slots=True)
class Metric:
    """What quality is measured by. A value times `scale` is in the `unit`, in which drops and budgets count.

    Accuracy is a fraction, told in points: scale 100. An error has the unit of the targets, `""` where none is known.
    """

    name: str
    unit: str = POINTS
    scale: float = 100.0
    higher_is_better: bool = True

    def drop(self, dense: float, slim: float) -> float:
        """How much worse `slim` is than `dense`, in the metric's unit; below 0 where it is better."""
        return (dense - slim if self.higher_is_better else slim - dense) * self.scale

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value > other if self.higher_is_better else value < other

    def number(self, change: float) -> str:
        """A change in the unit, without it: "1.39" of one in points, "0.003125" of another."""
        return f"{change:.2f}" if self.unit == POINTS else f"{change:.4g}"

    def shown(self, value: float) -> str:
        """E.g. "97.2 %" of a metric in points, "41.3" of another."""
        if self.unit == POINTS:
            return f"{self.scale * value:.1f} %"
        return f"{self.scale * value:.4g} {self.unit}".rstrip()


ACCURACY = Metric("accuracy")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that goes beside the metric of one network."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class BesideFigure:
    """A figure that goes beside the metric, e.g. R2 beside the mean absolute error; no budget counts in it."""

    name: str
    dense: float
    slim: float


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """Dense against slim on the same samples, by the metric of the task.

    `drop` is how much worse slim is, in the metric's unit. Intervals are of 95 %, None of a single sample, which tells
    nothing of others. `p_value` is that of a paired test, None where there is none.
    """

    metric: Metric
    dense: float
    slim: float
    dense_interval: tuple[float, float] | None
    slim_interval: tuple[float, float] | None
    drop: float
    drop_interval: tuple[float, float] | None
    n_samples: int
    p_value: float | None = None
    beside: tuple[BesideFigure, ...] = ()


VariantKind = Literal["int8", "int8-finetuned", "dynamic", "fp16", "w8"]
Int8For = Literal["any", "arm", "vnni"]


@dataclass(frozen=True, slots=True)
class LayerReconstruction:
    """What a least-squares solve has done for one layer of a slim network.

    `before` and `after` are what its outputs lack of the dense layer's, as shares of their variance, on samples that
    were held out; both 0 where there was nothing to mend. `note` says why it was left alone, or what to know.
    """

    layer: str
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What reconstruction did after a cut.

    `before` and `after` are means over the layers that had lost anything, `outputs_before` and `outputs_after` how far
    the network's outputs are from the dense ones', relative to how these vary, on samples held out.
    """

    n_samples: int
    before: float
    after: float
    outputs_before: float
    outputs_after: float
    seconds: float
    layers: tuple[LayerReconstruction, ...]

    @property
    def helps(self) -> bool:
        """Whether the outputs came nearer; the network is left as it was where they did not."""
        return self.outputs_after < self.outputs_before
