"""Numbers as people read them, the same in the terminal and on the page."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from typing import TYPE_CHECKING

from edgeprune.records import POINTS, KeptInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgeprune.records import Int8For, Metric, MetricComparison
    from edgeprune.results import (
        GateUse,
        LatencyComparison,
        NetworkFigures,
        PeakActivations,
        RunRecord,
        SharedWeights,
        StepRecord,
    )

NONE = "–"
_COUNTED = ("accuracy", "agreement")  # a sample more or less is 1 / n
_SLOW_TAIL = 1.25
_MOST_TENSORS = 4  # of a peak
_INT8_FOR = {
    "any": "for any CPU, with weights of 7 bits",
    "arm": "for ARM (--int8-for any is right on every CPU)",
    "vnni": "for x86 with VNNI (--int8-for any is right on every CPU)",
}


def int8_for(cpus: Int8For) -> str:
    """Where int8 files are right."""
    return _INT8_FOR[cpus]


def percent(fraction: float | None) -> str:
    """A fraction in percent, e.g. "97.22 %"."""
    return NONE if fraction is None else f"{100 * fraction:.2f} %"


def percent_interval(interval: tuple[float, float]) -> str:
    """An interval of fractions in percent, e.g. "95.1 to 98.6 %"."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def value(metric: Metric, found: float | None) -> str:
    """A metric as it is told, e.g. "97.22 %" of one in points, "41.27 mmol" of another."""
    if metric.unit == POINTS:
        return percent(found)
    return NONE if found is None else f"{metric.scale * found:.4g} {metric.unit}".rstrip()


def interval(metric: Metric, found: tuple[float, float] | None) -> str:
    """An interval of a metric, e.g. "95.1 to 98.6 %", "39.2 to 43.1 mmol"; of one sample there is none."""
    if found is None:
        return NONE
    if metric.unit == POINTS:
        return percent_interval(found)
    low, high = (metric.scale * end for end in found)
    return f"{low:.4g} to {high:.4g} {metric.unit}".rstrip()


def change(metric: Metric, drop: float) -> str:
    """What became of a value that dropped by so much, e.g. "−0.28 points", "+3.1 mmol" of an error."""
    return f"{_signed(metric, drop)} {metric.unit}".rstrip()


def measured_change(found: MetricComparison) -> str:
    """What became of the test split's metric; where that is about one sample, "no change (+0.28)"."""
    if _is_one_sample(found):
        return f"no change ({_signed(found.metric, found.drop)})"
    return change(found.metric, found.drop)


def _is_one_sample(found: MetricComparison) -> bool:
    """Whether about one more, or one fewer, of the test samples is right."""
    counts = found.metric.unit == POINTS and found.metric.name in _COUNTED
    return counts and 0 < abs(found.drop) * found.n_samples < 1.5 * found.metric.scale


def change_interval(metric: Metric, drop: tuple[float, float] | None) -> str:
    """An interval of changes from that of the drop, e.g. "−0.40 to +0.90"."""
    if drop is None:
        return NONE
    low, high = (drop[1], drop[0]) if metric.higher_is_better else drop
    return f"{_signed(metric, low)} to {_signed(metric, high)}"


def _signed(metric: Metric, drop: float) -> str:
    went = -drop if metric.higher_is_better else drop
    if metric.unit == POINTS:
        return points(went)
    return f"{went:+.4g}".replace("-", "−") if went else "0"


def title(metric: Metric) -> str:
    """The metric's name at the beginning of a line, e.g. "Accuracy"; one that is spelt as "mIoU" is stays."""
    return metric.name[:1].upper() + metric.name[1:] if metric.name.islower() else metric.name


def judged_on(run: RunRecord) -> str:
    """What the search judged on: "validation", the split of the data; "" where a function of the user's did."""
    return "" if run.asked.get("evaluate") else "validation"


def points(value: float) -> str:
    """A signed change in points, e.g. "+0.28" or "0.00"."""
    return f"{value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00").replace("-", "−")


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


def criteria(run: RunRecord) -> str | None:
    """By what units went in the cuts that were taken, where that was found out, e.g. "taylor in 3 cuts, l2 in 1".

    Of a front it is told for each network, from the one before on.
    """
    if not run.front:
        told = _counted(run.steps)
    else:
        counted = [(point.folder, _counted(own)) for point, own in zip(run.front, _legs(run), strict=True)]
        told = "; ".join(f"{folder}: {own}" for folder, own in counted if own)
    each = ", each network on from the one before" if run.front else ""
    return f"{told}: what lost less untrained{each}" if told else None


def _counted(steps: Sequence[StepRecord]) -> str:
    """What was found out in the steps that were taken, the most frequent first; "" where nothing was."""
    found = Counter(step.criterion for step in steps if step.accepted and step.criterion is not None)
    if not found:
        return ""
    [(first, count), *others] = found.most_common()
    return ", ".join(
        [f"{first} in {count} cut{'' if count == 1 else 's'}", *(f"{name} in {number}" for name, number in others)]
    )


def _legs(run: RunRecord) -> list[tuple[StepRecord, ...]]:
    """The steps from each network of a front to the next one, which has fewer MACs."""
    ends = [point.macs_ratio for point in run.front]
    return [
        tuple(step for step in run.steps if end <= step.macs_ratio < start)
        for start, end in zip((math.inf, *ends), ends, strict=False)
    ]


def reconstruction(run: RunRecord) -> str | None:
    """How far the cuts that were taken put the outputs off, and what the layers took over; None where they did not.

    Of a front they are those that led to the network that was chosen.
    """
    chosen = min((point.macs_ratio for point in run.front if point.chosen), default=0.0)
    steps = [step for step in run.steps if step.macs_ratio >= chosen]
    tried = [(step.accepted, step.reconstruction) for step in steps if step.reconstruction is not None]
    found = [one for accepted, one in tried if accepted]
    if not found:
        return None
    last = found[-1]
    cut = f"the last of {len(found)} cuts" if len(found) > 1 else "the cut"
    off, left = percent(last.outputs_before), percent(last.outputs_after)
    spent = f"{last.n_samples:,} samples, {seconds(sum(one.seconds for _, one in tried))}"
    kept = "" if last.helps else "; they keep their weights"
    return f"after {cut} the outputs were {off} off, and {left} once the layers were solved again ({spent}){kept}"


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


def quality_change(found: MetricComparison) -> str:
    """What became of the test split's metric, e.g. "0.84 points of test accuracy lost", "test MAE 2.1 mmol higher".

    A change that may be chance is called none, and one of about one sample too.
    """
    metric, told = found.metric, change(found.metric, found.drop)
    if _is_one_sample(found):
        return f"the same test {metric.name} but for about one sample ({told}), no change"
    if found.drop_interval is None or found.drop_interval[0] <= 0 <= found.drop_interval[1]:
        same = _signed(metric, found.drop) in ("0", "0.00")
        told = f"the same test {metric.name}" if same else f"test {metric.name} {told}"
        within = f" (95 % interval {change_interval(metric, found.drop_interval)})" if found.drop_interval else ""
        return f"{told}, no significant change{within}"
    if metric.unit == POINTS:
        lost = (found.drop > 0) == metric.higher_is_better
        return f"{abs(found.drop):.2f} points of test {metric.name} {'lost' if lost else 'gained'}"
    grown = (found.drop < 0) == metric.higher_is_better
    return f"test {metric.name} {metric.number(abs(found.drop))} {metric.unit}".rstrip() + (
        " higher" if grown else " lower"
    )


def latency_method(latency: LatencyComparison) -> str:
    """How latency was measured, e.g. "onnxruntime, 1 thread, batch 1, 400 interleaved runs"."""
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"onnxruntime, {threads}, batch {latency.batch_size}, {latency.n_runs} interleaved runs"


def quoted(path: str | Path) -> str:
    """A path as it is given to a shell."""
    return shlex.quote(str(path))


def kept_of(run: RunRecord) -> tuple[KeptInput, ...]:
    """What is kept of every input that has lost features, or stands beside one; that of a single one has no name."""
    if run.features is None:
        return run.inputs
    return (KeptInput("", tuple(run.model.get("input_shape") or ()), run.features, run.feature_weights),)


def of_input(one: KeptInput) -> str:
    """E.g. " of table"; "" where there is one input."""
    return f" of {one.input}" if one.input else ""


def feature_counts(run: RunRecord) -> tuple[tuple[str, int, int], ...]:
    """Of every input whose it is, as `of_input`, how many features there are and how many are kept."""
    return tuple((of_input(one), one.features.size, len(one.features.keep)) for one in kept_of(run))


def peaks(dense: NetworkFigures, slim: NetworkFigures) -> list[tuple[str, int, int]]:
    """The peaks of the activations of both networks, in float and in int8; none of a run of before they were told."""
    found = (
        ("peak activations", dense.peak_bytes, slim.peak_bytes),
        ("peak activations, int8", dense.peak_int8_bytes, slim.peak_int8_bytes),
    )
    return [(name, before, after) for name, before, after in found if before is not None and after is not None]


def peak(found: PeakActivations) -> str:
    """E.g. "peak activations 24.6 kB at conv2d_1 (conv2d_1 16.4 kB, relu 8.2 kB)"."""
    tensors = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in found.tensors[:_MOST_TENSORS])
    more = ", ..." if len(found.tensors) > _MOST_TENSORS else ""
    how = "" if found.is_best else ", in the best order that was found"
    return f"peak activations {size(found.n_bytes)} at {found.at} ({tensors}{more}){how}"


def splits(record: RunRecord) -> str:
    """Which layers became two, and with how many channels in between; nothing where none did."""
    return ", ".join(f"{one.name} in two at rank {one.rank}" for one in record.splits)


def shared_weights(shared: SharedWeights) -> str:
    """E.g. "one file of weights for 3 widths, widths/weights.bin: 460 kB with all graphs, 1.02 times the largest"."""
    return (
        f"one file of weights for {len(shared.networks)} widths, {shared.weights}: {size(shared.size_bytes)} with all "
        f"graphs, {shared.size_bytes / shared.largest_bytes:.2f} times the largest; ONNX = PyTorch, absolute error "
        f"{error(shared.parity)}"
    )


def gate(run: RunRecord) -> str:
    """E.g. "the gate, widths/gate.onnx, picks ..."; nothing where there is none."""
    shared = run.shared
    if shared is None or shared.gate is None:
        return ""
    own, metric = shared.gate, run.metric
    return (
        f"a gate picks the width of each sample, {own.file}: {own.cost:.3f} of the widest network's {own.of} in the "
        f"mean over the validation split, at most {own.asked:g} asked; {metric.name} {metric.shown(own.value)}; "
        f"{_picked(shared.networks, own.picked)}; ONNX = PyTorch on all of it, absolute error {error(own.parity)}"
    )


def gate_use(use: GateUse) -> str:
    """E.g. "mean MACs 0.600 of the widest network's, mean time 0.0500 ms; width 1 for 30 %, ... of the samples"."""
    return (
        f"mean MACs {use.macs_ratio:.3f} of the widest network's, mean time {milliseconds(use.slim_ms)} (dense "
        f"{milliseconds(use.dense_ms)}); {_picked(use.widths, use.picked)}"
    )


def _picked(names: Sequence[str], shares: Sequence[float]) -> str:
    """E.g. "width 1 for 30 %, 0.5 for 70 % of the samples"."""
    pairs = ", ".join(f"{name} for {100 * share:.0f} %" for name, share in zip(names, shares, strict=True))
    return f"width {pairs} of the samples"
