"""What `edgeprune validate` measured of two files, or of each width of one network."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import MetricComparison
from edgeprune.results.run import AccuracyComparison, LatencyComparison


@dataclass(frozen=True, slots=True)
class GateUse:
    """What a gate picks on the test split, and what that costs in the mean over its samples.

    `picked` is the share of the samples of each of `widths`, from wide to narrow; `macs_ratio` the mean MACs beside the
    widest network's. `slim_ms` is the mean time over the samples, by the p50 of each width; `dense_ms` the dense
    network's p50. Their ratio is that of the latency beside.
    """

    widths: tuple[str, ...]
    picked: tuple[float, ...]
    macs_ratio: float
    dense_ms: float
    slim_ms: float


@dataclass(frozen=True, slots=True)
class ValidateRecord:
    """What `edgeprune validate` measured, both in onnxruntime; `failures` names the missed budgets.

    A classification has an `accuracy`, another task a `comparison` by its metric, and the `agreement`: the share of
    answers that are the same, None where they are no decisions. `parity` is the largest difference of the outputs.
    `gate` is that of a slim network that picks its width for each sample.
    """

    accuracy: AccuracyComparison | None
    parity: float
    dense_bytes: int
    slim_bytes: int
    latency: LatencyComparison
    failures: tuple[str, ...] = ()
    comparison: MetricComparison | None = None
    agreement: float | None = None
    gate: GateUse | None = None

    @property
    def compared(self) -> MetricComparison:
        """Both networks on the test split, whatever the metric."""
        found = self.comparison if self.accuracy is None else self.accuracy.as_metric
        assert found is not None
        return found

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: of a classification as ever."""
        of_task = ("accuracy",) if self.accuracy is None else ("comparison", "agreement")
        return dict.fromkeys((*of_task, *(() if self.gate else ("gate",))))


@dataclass(frozen=True, slots=True)
class ValidateWidthsRecord:
    """What `edgeprune validate` measured of each width of one network beside the dense one, from wide to narrow."""

    names: tuple[str, ...]
    widths: tuple[ValidateRecord, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """The missed budgets of all widths, each with its name."""
        pairs = zip(self.names, self.widths, strict=True)
        return tuple(f"{name}: {failure}" for name, record in pairs for failure in record.failures)
