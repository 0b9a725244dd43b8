"""Several networks of one run: points of a front, or one network at several widths with the weights that they share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One network of several, from large to small: what it takes in onnxruntime, and how well it does.

    `folder` is where it lies, beside the run's own files; `chosen` marks the one that became the run's slim network.
    """

    folder: str
    macs_ratio: float
    val_value: float | None
    p50_ms: float
    latency_ratio: float
    size_bytes: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class GateFigures:
    """A file that picks the width by the input, and what it comes to on the validation split.

    `asked` is the mean share of what the widest network takes, `of` its "MACs" or its "latency", `cost` the one that it
    comes to; `picked` the share of the samples that each width is picked for, from wide to narrow. `macs` are those of
    the gate alone for a sample, `macs_ratio` the mean of all beside the widest network's, `value` is that of the task's
    metric. `size_bytes` is that of the file without the weights, `parity` the largest difference of an output from
    PyTorch's over the whole split.
    """

    file: str
    asked: float
    of: str
    cost: float
    picked: tuple[float, ...]
    macs: int
    macs_ratio: float
    value: float
    size_bytes: int
    parity: float


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """The ONNX graphs `networks` of one network at several widths, from wide to narrow, and the weights they share.

    `size_bytes` is that of all files together, `largest_bytes` that of the widest network as one file; `parity` is the
    largest difference of an output from PyTorch's. `gate` is the file that picks one of them, where it was asked for;
    `no_gate` says why there is none all the same.
    """

    weights: str
    networks: tuple[str, ...]
    size_bytes: int
    largest_bytes: int
    parity: float
    gate: GateFigures | None = None
    no_gate: str = ""

    @property
    def json_names(self) -> dict[str, str | None]:
        """Where no gate was asked for nothing is said of it."""
        return dict.fromkeys(name for name in ("gate", "no_gate") if not getattr(self, name))
