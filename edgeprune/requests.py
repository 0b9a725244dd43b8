"""What the commands are asked, as plain records; no torch at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeprune.records import InputInfo, Int8For
from edgeprune.settings import ALLOCATIONS, MOST_FINETUNINGS, FederatedSettings, TrainSettings

Dynamic = Mapping[
    str, Mapping[int, tuple[int, int | None] | None]
]  # input -> free dims -> (least, largest) or no bound


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What `edgeprune train` was asked."""

    arch: str
    data: str
    out: str
    settings: TrainSettings = field(default_factory=TrainSettings)
    force: bool = False
    resume: bool = False
    normalize: str = "data"
    task: str | None = None
    inputs: tuple[InputInfo, ...] | None = None
    class_weights: str | None = None


@dataclass(frozen=True, slots=True)
class FederateRequest:
    """What `edgeprune federate` was asked; `threads` None takes what the network's size suggests."""

    arch: str
    data: str
    out: str
    settings: FederatedSettings = field(default_factory=FederatedSettings)
    force: bool = False
    normalize: str = "data"
    task: str | None = None
    class_weights: str | None = None
    threads: int | None = None

    @property
    def as_training(self) -> TrainRequest:
        """The parts that say which network is trained on which data."""
        own = TrainSettings(seed=self.settings.seed, threads=self.threads)
        normalize, task, weights = self.normalize, self.task, self.class_weights
        return TrainRequest(
            self.arch, self.data, self.out, own, self.force, normalize=normalize, task=task, class_weights=weights
        )


@dataclass(frozen=True, slots=True)
class CompressRequest:
    """What `edgeprune compress` was asked; None means "not given", and what is assumed instead is printed.

    `max_drop` is a number in the metric's unit, or a text with the unit or `%`, see `tasks.budget`.
    `vocabularies` say which ids of token inputs stay, e.g. `("ids=used",)`, `unknown_ids` what stands for the others.
    `trust_recorded` lets the model's file name code that runs, see `trust.py`. `finetune` and `evaluate` name functions
    of the user's, path/file.py:function, and `metric` the figure of the latter: NAME, NAME:lower or NAME:higher.
    `class_weights` are balanced, none or a file of them.
    With `resume` the run goes on that was stopped on its way to `out`. `recipe` says by name, as in a recipe file, what
    finetuning does otherwise than the model's own training. With `int8` the run folder gets the ONNX files and those of
    smaller numbers too, `int8_for` the CPUs that int8 must be right on, any by default.
    """

    model: str
    data: str | None = None
    out: str | None = None
    keep_macs: float | None = None
    max_drop: float | str | None = None
    input_features: str = "auto"
    always_keep: str | None = None
    feature_groups: str | None = None
    feature_price: str | None = None
    max_latency: str | None = None
    max_size: str | None = None
    max_ram: str | None = None
    device: str | None = None
    pareto: int | None = None
    widths: tuple[float, ...] | None = None
    gate: str | None = None
    criterion: str | None = None
    finetune_epochs: int | None = None
    max_finetunings: int = MOST_FINETUNINGS
    reconstruct: bool = True
    distill: bool = True
    distill_features: bool | None = None
    align: int | None = None
    seed: int = 0
    plan: str | None = None
    attention: str = "heads"
    appliable: bool = False
    leave: tuple[str, ...] = ()
    layer_ratios: tuple[str, ...] = ()
    allocation: str = ALLOCATIONS[0]
    prune_schedule: str | None = None
    depth: bool | None = None
    lowrank: bool | None = None
    arch: str | None = None
    module: str | None = None
    input_shape: tuple[int, ...] | None = None
    dynamic_size: bool = False
    dynamic: Dynamic | None = None
    threads: int | None = None
    force: bool = False
    resume: bool = False
    unsafe_pickle: bool = False
    command: str = ""
    normalize: str | None = None
    allow_chance: bool = False
    trust_recorded: bool = False
    state_key: str | None = None
    ignore_keys: str | None = None
    task: str | None = None
    inputs: tuple[InputInfo, ...] | None = None
    finetune: str | None = None
    evaluate: str | None = None
    metric: str | None = None
    vocabularies: tuple[str, ...] | None = None
    unknown_ids: tuple[str, ...] | None = None
    recipe: Mapping[str, Any] | None = None
    class_weights: str | None = None
    int8: bool | None = None
    int8_for: Int8For | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What `edgeprune export` was asked; without `model` the newest run under `runs/` is taken.

    `targets` names what is written beside the ONNX files, as the catalog does, `every` adds each runtime that is
    installed; what cannot be written for one of those is said. `batch` None leaves it free; `max_drop` is what int8 may
    lose, as for `CompressRequest`, `finetune_epochs` are those that it is finetuned for where it loses more, and
    `int8_for` the CPUs that it must be right on, any by default; `layout` how a .tflite file has images; `dense` is the
    network beside which the web page runs this one, by default that of the run. `shared` adds the small ONNX file of a
    network whose weights share templates. `trust_recorded` as for `CompressRequest`, and for the run's dense network.
    """

    model: str | None = None
    out: str | None = None
    data: str | None = None
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    dynamic_size: bool = False
    dynamic: Dynamic | None = None
    opset: int | None = None
    simplify: bool = True
    targets: tuple[str, ...] = ()
    every: bool = False
    ort_platform: Literal["arm", "amd64"] | None = None
    int8: bool = False
    int8_for: Int8For | None = None
    finetune_epochs: int = 0
    mobile: bool = False
    batch: int | None = None
    preprocess: Literal["apart", "fold"] = "apart"
    max_drop: float | str | None = None
    dense: str | None = None
    web_runtime: str = "1.30.0"
    layout: Literal["nhwc", "nchw"] = "nhwc"
    force: bool = False
    unsafe_pickle: bool = False
    normalize: str | None = None
    allow_chance: bool = False
    trust_recorded: bool = False
    state_key: str | None = None
    ignore_keys: str | None = None
    task: str | None = None
    inputs: tuple[InputInfo, ...] | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class ValidateRequest:
    """What `edgeprune validate` was asked; `max_drop` as for `CompressRequest`, `max_latency_ratio` slim / dense.

    `trust_recorded` lets a file name the task's code.
    """

    dense: str
    slim: str
    data: str
    max_drop: float | str | None = None
    max_latency_ratio: float | None = None
    threads: int = 1
    runs: int = 200
    batch_size: int = 1
    normalize: str | None = None
    allow_chance: bool = False
    task: str | None = None
    trust_recorded: bool = False


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """What `edgeprune inspect` was asked; `dot` and `svg` are files to draw the groups into."""

    model: str
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    dynamic_size: bool = False
    attention: str = "heads"
    unsafe_pickle: bool = False
    dot: str | None = None
    svg: str | None = None
    force: bool = False
    module: str | None = None
    dynamic: Dynamic | None = None
    state_key: str | None = None
    ignore_keys: str | None = None
    inputs: tuple[InputInfo, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What `edgeprune profile` was asked: whose layers are measured, and how; `fresh` takes nothing from the cache."""

    model: str
    out: str = "device.json"
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    threads: int = 1
    batch_size: int = 1
    runs: int = 20
    warmup: int = 3
    fresh: bool = False
    force: bool = False
    unsafe_pickle: bool = False
    state_key: str | None = None
    ignore_keys: str | None = None
    inputs: tuple[InputInfo, ...] | None = None


@dataclass(frozen=True, slots=True)
class CertifyRequest:
    """What `edgeprune certify` was asked: `eps` is in the units of the data, None for removed inputs.

    `of` is `"robustness"`, `"dropped-inputs"` or `"equivalence"`; the last two ask for the run's dense network, or the
    one that is named. `valid_range` is what boxes are clipped to, `LOW:HIGH`. `trust_recorded` as for
    `CompressRequest`.
    """

    model: str
    data: str | None = None
    of: Literal["robustness", "dropped-inputs", "equivalence"] = "robustness"
    eps: float | None = None
    samples: int = 100
    method: str = "crown"
    min_verified: float | None = None
    max_difference: float | None = None
    valid_range: str | None = None
    dense: str | None = None
    seed: int = 0
    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    normalize: str | None = None
    unsafe_pickle: bool = False
    trust_recorded: bool = False


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What `edgeprune bench` was asked: files or folders, and the device; programs that are None are looked for.

    `delegate` None is each runtime's default; `runs` are the inferences of a round, `timeout` its seconds at most.
    """

    networks: tuple[str, ...]
    serial: str | None = None
    benchmark_model: str | None = None
    perf_test: str | None = None
    delegate: str | None = None
    threads: int = 1
    runs: int = 50
    rounds: int = 5
    timeout: float = 300.0
    out: str | None = None
    force: bool = False
