"""What `edgeprune export` reports: the files, and those of several runtimes side by side; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import ACCURACY, Int8For, Metric, VariantKind


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A variant that is not written, and why."""

    kind: VariantKind
    reason: str


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file that `export` wrote and checked; `parity` is the largest absolute error on the logits, or None.

    `p50_ms` is one inference in its runtime, `ratio` that over the dense network's there; None where it was not timed.
    `note` is what else to know of it, `left_out` says which smaller ones of it are not there.
    """

    path: str
    size_bytes: int
    parity: float | None
    p50_ms: float | None = None
    ratio: float | None = None
    note: str = ""
    left_out: tuple[LeftOut, ...] = ()

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: a note, and what is left out, only where there is something."""
        return dict.fromkeys(name for name in ("note", "left_out") if not getattr(self, name))


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table; `ratio` is the median time over that of fp32, with its 95 % interval.

    `value` is that of the table's metric, None without data; `drop` counts in its unit, as in `QuantizedFile`. Both are
    of this CPU; `exact_value` and `exact_drop` are what a file with int8 in it means, None for others.
    """

    name: str
    path: str
    size_bytes: int
    value: float | None
    drop: float | None
    within_budget: bool
    p50_ms: float
    p95_ms: float
    ratio: float
    ratio_interval: tuple[float, float]
    verdict: str
    exact_value: float | None = None
    exact_drop: float | None = None

    @property
    def faster(self) -> bool:
        """Whether it is faster than fp32 for sure."""
        return self.ratio_interval[1] < 1

    @property
    def slower(self) -> bool:
        """Whether it is slower than fp32 for sure."""
        return self.ratio_interval[0] > 1


@dataclass(frozen=True, slots=True)
class VariantTable:
    """All variants, fp32 first, those that were not made, and the name of the one to ship with the reason.

    `int8_for` names the CPUs that int8 is made for, `cpu` says what the one is to int8 products that measured it, and
    `notes` what there is to know of files.
    """

    variants: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...]
    ship: str
    why: str
    metric: Metric = ACCURACY
    int8_for: Int8For = "any"
    cpu: str = ""
    notes: tuple[str, ...] = ()

    @property
    def shipped(self) -> Variant | None:
        """The one to ship; None where there are none."""
        return next((variant for variant in self.variants if variant.name == self.ship), None)

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: of an accuracy as ever."""
        return {"metric": None} if self.metric == ACCURACY else {}

    @property
    def json_values(self) -> dict[str, str]:
        """What values are called in the rows."""
        names = {"value": "accuracy", "drop": "drop_points"}
        exact = {f"exact_{name}": f"exact_{told}" for name, told in names.items()}
        return names | exact if self.metric == ACCURACY else {}


@dataclass(frozen=True, slots=True)
class TargetRow:
    """The file of one target; `ratio` is its median time over that of the ONNX file in onnxruntime, with its interval.

    `size_bytes` counts all that the file needs, `parity` is its largest absolute error. Times are None where nothing
    here runs the file; `verdict` says so then.
    """

    target: str
    path: str
    size_bytes: int
    parity: float | None
    p50_ms: float | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    verdict: str


@dataclass(frozen=True, slots=True)
class LeftOutTarget:
    """A target that nothing was written for, and why."""

    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class TargetTable:
    """The files of all runtimes side by side, the ONNX file first, and the path of the one to ship with the reason."""

    rows: tuple[TargetRow, ...]
    left_out: tuple[LeftOutTarget, ...]
    ship: str
    why: str


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """What `edgeprune export` wrote.

    `variants` compares fp32 with int8 and others, `mobile` says what accelerators of phones would take, `web` is the
    folder of the page, `note` what the files want of their inputs. `agreement` is the share of the answers that are
    those of PyTorch, None for a classification and where answers are no decisions. `targets` compares the files of
    several runtimes; `left_out` says which files the network does without, and why.
    """

    model: str
    files: tuple[ExportedFile, ...]
    assumed: tuple[str, ...]
    n_samples: int
    variants: VariantTable | None = None
    mobile: tuple[str, ...] = ()
    web: str | None = None
    note: str = ""
    agreement: float | None = None
    targets: TargetTable | None = None
    left_out: tuple[str, ...] = ()

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: an agreement, targets and files left out where there are any."""
        return dict.fromkeys(name for name in ("agreement", "targets", "left_out") if getattr(self, name) in (None, ()))
