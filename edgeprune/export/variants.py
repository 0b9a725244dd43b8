"""The variants of one network (fp32, int8, dynamic, fp16) side by side, and which of them to ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.judging import QuantizedFile, left_in_float
from edgeprune.export.ort import Feed
from edgeprune.export.quanttools import cpu_in_words
from edgeprune.records import ACCURACY, Int8For, Metric
from edgeprune.results import LeftOut, Variant, VariantTable
from edgeprune.tasks.budget import is_within

FLOAT = "fp32"
Measure = Callable[[Sequence[Path], Sequence[Feed]], np.ndarray]
Interval = Callable[[np.ndarray], tuple[float, float]]


def compare_variants(  # noqa: PLR0913 - what is compared, and the three ways of measuring it
    source: Path,
    made: Sequence[QuantizedFile | LeftOut],
    inputs: Feed,
    *,
    max_drop: float,
    measure: Measure,
    interval: Interval,
    values: Mapping[str, float] | None = None,
    metric: Metric = ACCURACY,
    int8_for: Int8For = "any",
) -> VariantTable:
    """Time a float file and what was made of it in one interleaved run, and choose.

    The one to ship is the fastest within the budget that is faster than fp32 for sure; else the smallest within the
    budget that is not slower for sure; else fp32.

    Args:
        source: the float file.
        made: what `write_int8`, `write_dynamic` and `write_half` returned, each kind once.
        inputs: `(batch, ...)`, as every file takes them.
        max_drop: what may be lost, in the metric's unit; read where there are values.
        measure: milliseconds `(n_runs, n_files)` of files on an input each, run by run in turn.
        interval: the 95 % interval of the ratio of the medians of two columns, second over first.
        values: of the metric by kind on this CPU, `fp32` included; None takes the drops that were found when the files
            were made. What a file means keeps the budget too, or it is not shipped.
        metric: what they are of.
        int8_for: the CPUs that int8 is made for, to be told.

    Raises:
        InputError: a kind twice, a value that is missing, or a file that does not run.

    Example: `compare_variants(slim, [int8], x, max_drop=1.0, measure=measure_files, interval=ratio_interval)`.
    """
    files = [one for one in made if isinstance(one, QuantizedFile)]
    _check_kinds([file.kind for file in files], values)
    times = measure([source, *(Path(file.path) for file in files)], [inputs] * (1 + len(files)))
    budget = _Budget(values, metric, max_drop)
    judged = [_row(FLOAT, source, times[:, [0, 0]], interval).judged(budget, None)]
    for column, file in enumerate(files, 1):
        row = _row(file.kind, Path(file.path), times[:, [0, column]], interval)
        judged.append(row.judged(budget, file))
    ship, why = _choice(judged, metric)
    left_out = tuple(one for one in made if isinstance(one, LeftOut))
    notes = tuple(f"{file.kind}: {left_in_float(file)}" for file in files if file.excluded)
    return VariantTable(tuple(judged), left_out, ship, why, metric, int8_for, cpu_in_words(), notes)


def _check_kinds(kinds: Sequence[str], values: Mapping[str, float] | None) -> None:
    names = [FLOAT, *kinds]
    missing = [] if values is None else [name for name in names if name not in values]
    if len(set(names)) < len(names) or missing:
        raise InputError(f"variants: expected each once, with its value, got {names}, none for {missing}")


@dataclass(frozen=True, slots=True)
class _Budget:
    """What the variants are judged by."""

    values: Mapping[str, float] | None
    metric: Metric
    max_drop: float

    def missed(self, within: bool, drop: float | None, exact_drop: float | None) -> tuple[str, ...]:
        """A sentence where it is, of the larger drop of both; where only one misses it, which one."""
        if within:
            return ()
        if drop is None:
            return ("out of budget",)
        meant = drop if exact_drop is None else exact_drop
        both = is_within(drop, self.max_drop) == is_within(meant, self.max_drop)
        where = "" if both else " on this CPU" if drop > meant else " as the file means it"
        lost = "drops" if self.metric.higher_is_better else f"{self.metric.name} rises by"
        return (
            f"out of budget: {lost} {self.metric.number(max(drop, meant))} {self.metric.unit}".rstrip()
            + f" (at most {self.max_drop:.6g}){where}",
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """What was measured of one file."""

    name: str
    path: Path
    p50_ms: float
    p95_ms: float
    ratio: float
    ratio_interval: tuple[float, float]

    def judged(self, budget: _Budget, file: QuantizedFile | None) -> Variant:
        """The row of the table; `file` is None for fp32."""
        values = budget.values
        drop, within = (0.0, True) if file is None else (file.drop, file.within_budget)
        exact_drop = None if file is None else file.exact_drop
        if values is not None:
            drop = budget.metric.drop(values[FLOAT], values[self.name])
            within = all(is_within(lost, budget.max_drop) for lost in (drop, exact_drop) if lost is not None)
        verdict = "; ".join((self._speed(), *budget.missed(within, drop, exact_drop)))
        return Variant(
            name=self.name,
            path=str(self.path),
            size_bytes=self.path.stat().st_size,
            value=None if values is None else values[self.name],
            drop=drop,
            within_budget=within,
            p50_ms=self.p50_ms,
            p95_ms=self.p95_ms,
            ratio=self.ratio,
            ratio_interval=self.ratio_interval,
            verdict="the reference" if file is None else verdict,
            exact_value=None if file is None or values is None else file.exact_value,
            exact_drop=exact_drop,
        )

    def _speed(self) -> str:
        low, high = self.ratio_interval
        times = f"{self.ratio:.2f} of fp32's time ({low:.2f} to {high:.2f})"
        if high < 1:
            return f"faster than fp32: {times}"
        return f"slower than fp32: {times}" if low > 1 else f"no significant gain in time: {times}"


def _row(name: str, path: Path, times: np.ndarray, interval: Interval) -> _Row:
    """`times` is `(n_runs, 2)`: fp32 and the file."""
    (base, p50), (_, p95) = np.percentile(times, [50, 95], axis=0)
    if name == FLOAT:
        return _Row(name, path, float(p50), float(p95), 1.0, (1.0, 1.0))
    return _Row(name, path, float(p50), float(p95), float(p50 / base), interval(times))


def _choice(variants: Sequence[Variant], metric: Metric) -> tuple[str, str]:
    """The name of the one to ship and why."""
    reference, *others = variants
    if not others:
        return FLOAT, "nothing else was made"
    affordable = [variant for variant in others if variant.within_budget]
    if not affordable:
        return FLOAT, f"no other keeps the {metric.name} budget"
    faster = [variant for variant in affordable if variant.faster]
    if faster:
        best = min(faster, key=lambda variant: variant.ratio)
        low, high = best.ratio_interval
        return best.name, f"the fastest within the budget: {best.ratio:.2f} of fp32's time ({low:.2f} to {high:.2f})"
    return _smallest([variant for variant in affordable if not variant.slower], reference)


def _smallest(variants: Sequence[Variant], reference: Variant) -> tuple[str, str]:
    """The smallest of those that are not slower, if it is smaller than fp32."""
    smaller = [variant for variant in variants if variant.size_bytes < reference.size_bytes]
    if smaller:
        best = min(smaller, key=lambda variant: variant.size_bytes)
        share = best.size_bytes / reference.size_bytes
        return best.name, f"none is faster than fp32 for sure; the smallest, {share:.2f} of fp32's size, is not slower"
    return FLOAT, "the others within the budget are slower or no smaller"
