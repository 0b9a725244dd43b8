"""What `edgeprune bench` reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phone:
    """A device as it describes itself; empty where it does not say.

    `chip` is e.g. "Tensor", `android` the version, `abis` what its programs are made for.
    """

    serial: str
    model: str
    chip: str
    android: str
    abis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BenchRound:
    """What a benchmark program said of one network, once: milliseconds of an inference over `n_runs` of them.

    None is what it does not tell. `memory_bytes` is at the peak; `delegated` who ran how much, e.g.
    "TfLiteXNNPackDelegate: 58 of 58 nodes in 1 part".
    """

    mean_ms: float
    p50_ms: float | None
    p95_ms: float | None
    std_ms: float | None
    first_ms: float | None
    n_runs: int | None
    memory_bytes: int | None
    delegated: str | None


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One network on the device, over all rounds.

    `mean_ms` is the mean of the rounds' means, `p50_ms` and `p95_ms` the medians of theirs, `std_ms` within a round,
    `memory_bytes` the most. `ratio` is over the first network of the same runtime, with a 95 % interval; None for that.
    """

    file: str
    runtime: str
    program: str
    size_bytes: int
    delegate: str
    mean_ms: float
    p50_ms: float | None
    p95_ms: float | None
    std_ms: float | None
    memory_bytes: int | None
    memory_is: str
    delegated: str | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    rounds: tuple[BenchRound, ...]


@dataclass(frozen=True, slots=True)
class BenchRecord:
    """Networks on a device; `thermal` is how warm it said it was before and after, None where it did not say."""

    out: str
    phone: Phone
    threads: int
    runs: int
    thermal: tuple[str | None, str | None]
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]
    seconds: float
