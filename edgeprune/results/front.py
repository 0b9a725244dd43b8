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
class SharedWeights:
    """The ONNX graphs `networks` of one network at several widths, from wide to narrow, and the weights they share.

    `size_bytes` is that of all files together, `largest_bytes` that of the widest network as one file; `parity` is the
    largest difference of an output from PyTorch's.
    """

    weights: str
    networks: tuple[str, ...]
    size_bytes: int
    largest_bytes: int
    parity: float
