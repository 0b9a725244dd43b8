"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.results import AccuracyComparison, LatencyComparison

NONE = "–"
_SLOW_TAIL = 1.25


def percent(fraction: float | None) -> str:
    """A fraction in percent, e.g. "97.22 %"."""
    return NONE if fraction is None else f"{100 * fraction:.2f} %"


def percent_interval(interval: tuple[float, float]) -> str:
    """An interval of fractions in percent, e.g. "95.1 to 98.6 %"."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def points(value: float) -> str:
    """A signed change in points, e.g. "+0.28" or "0.00"."""
    return f"{value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00").replace("-", "−")


def points_interval(interval: tuple[float, float]) -> str:
    """An interval of signed changes, e.g. "−0.40 to +0.90"."""
    return f"{points(interval[0])} to {points(interval[1])}"


def count(value: int) -> str:
    """A count, shortened above a hundred thousand, e.g. "9,408" or "4.09 G"."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e5)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{value:,}"


def size(n_bytes: int) -> str:
    """A size in decimal units, e.g. "38.2 kB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.3g} {unit}"
    return f"{n_bytes} bytes"


def milliseconds(value: float) -> str:
    """A duration with three digits, e.g. "0.0123 ms"."""
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def share(part: float, whole: float) -> str:
    """`part` as a share of `whole`, e.g. "12.8 %"."""
    return f"{100 * part / whole:.1f} %" if whole else NONE


def ratio(value: float) -> str:
    """A ratio, e.g. "0.57×"."""
    return f"{value:.2f}×"


def ratio_interval(interval: tuple[float, float]) -> str:
    """An interval of ratios, e.g. "0.54 to 0.61"."""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def error(value: float) -> str:
    """A small error, e.g. "3.1e-07"."""
    return f"{value:.1e}" if value else "0"


def seconds(value: float) -> str:
    """A duration, e.g. "12 s" or "3 min 20 s"."""
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def latency_verdict(latency: LatencyComparison) -> str:
    """One sentence on whether slim is faster, said aloud when it is not."""
    of_dense = f"{latency.ratio:.2f} of the dense time (95 % interval {ratio_interval(latency.ratio_interval)})."
    if latency.significant:
        told = f"Faster: {of_dense}"
    elif latency.ratio_interval[0] > 1.0:
        told = f"No significant gain: slower, {of_dense}"
    else:
        told = f"No significant gain in latency: {of_dense}"
    if not _slow_tail(latency):
        return told
    p95 = f"{milliseconds(latency.slim_p95_ms)} against {milliseconds(latency.dense_p95_ms)}"
    return f"{told} But its slowest runs take {_tail(latency):.1f} times as long as the dense ones: p95 {p95}."


def latency_holds(latency: LatencyComparison) -> bool:
    """Whether slim is faster, and not only in the median."""
    return latency.significant and not _slow_tail(latency)


def _tail(latency: LatencyComparison) -> float:
    """slim / dense of the 95th percentiles."""
    return latency.slim_p95_ms / latency.dense_p95_ms if latency.dense_p95_ms else 1.0


def _slow_tail(latency: LatencyComparison) -> bool:
    """Whether one inference in twenty takes much longer than the dense one's, and than the median promises."""
    return _tail(latency) > _SLOW_TAIL * max(1.0, latency.ratio)


def accuracy_change(accuracy: AccuracyComparison) -> str:
    """What became of the test accuracy, e.g. "0.84 points of test accuracy lost"; no change that may be chance."""
    change, (low, high) = -accuracy.drop_points, accuracy.drop_interval
    if low <= 0 <= high:
        same = points(change) == "0.00"
        told = "the same test accuracy" if same else f"test accuracy {points(change)} points"
        return f"{told}, no significant change (95 % interval {points_interval((-high, -low))})"
    return f"{abs(change):.2f} points of test accuracy {'lost' if change < 0 else 'gained'}"


def latency_method(latency: LatencyComparison) -> str:
    """How latency was measured, e.g. "onnxruntime, 1 thread, batch 1, 400 interleaved runs"."""
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"onnxruntime, {threads}, batch {latency.batch_size}, {latency.n_runs} interleaved runs"
