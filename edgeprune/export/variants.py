"""The variants of one network (fp32, int8, dynamic, fp16) side by side, and which of them to ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.quantize import QuantizedFile
from edgeprune.records import ACCURACY
from edgeprune.results import LeftOut, Variant, VariantTable
from edgeprune.tasks.budget import is_within

FLOAT = "fp32"
Measure = Callable[[Sequence[Path], Sequence[np.ndarray]], np.ndarray]
Interval = Callable[[np.ndarray], tuple[float, float]]


def compare_variants(  # noqa: PLR0913 - what is compared, and the three ways of measuring it
    source: Path,
    made: Sequence[QuantizedFile | LeftOut],
    inputs: np.ndarray,
    *,
    max_drop: float,
    measure: Measure,
    interval: Interval,
    accuracies: Mapping[str, float] | None = None,
) -> VariantTable:
    """Time a float file and what was made of it in one interleaved run, and choose.

    The one to ship is the fastest within the budget that is faster than fp32 for sure; else the smallest within the
    budget that is not slower for sure; else fp32.

    Args:
        source: the float file.
        made: what `write_int8`, `write_dynamic` and `write_half` returned, each kind once.
        inputs: `(batch, ...)`, as every file takes them.
        max_drop: points of accuracy that may be lost; read where there are accuracies.
        measure: milliseconds `(n_runs, n_files)` of files on an input each, run by run in turn.
        interval: the 95 % interval of the ratio of the medians of two columns, second over first.
        accuracies: fractions by kind, `fp32` included; None takes the drops that were found when the files were made.

    Raises:
        InputError: a kind twice, an accuracy that is missing, or a file that does not run.

    Example: `compare_variants(slim, [int8], x, max_drop=1.0, measure=measure_files, interval=ratio_interval)`.
    """
    files = [one for one in made if isinstance(one, QuantizedFile)]
    _check_kinds([file.kind for file in files], accuracies)
    times = measure([source, *(Path(file.path) for file in files)], [inputs] * (1 + len(files)))
    judged = [_row(FLOAT, source, times[:, [0, 0]], interval).judged(accuracies, None, max_drop)]
    for column, file in enumerate(files, 1):
        row = _row(file.kind, Path(file.path), times[:, [0, column]], interval)
        judged.append(row.judged(accuracies, file, max_drop))
    ship, why = _choice(judged)
    return VariantTable(tuple(judged), tuple(one for one in made if isinstance(one, LeftOut)), ship, why)


def _check_kinds(kinds: Sequence[str], accuracies: Mapping[str, float] | None) -> None:
    names = [FLOAT, *kinds]
    missing = [] if accuracies is None else [name for name in names if name not in accuracies]
    if len(set(names)) < len(names) or missing:
        raise InputError(f"variants: expected each once, with its accuracy, got {names}, none for {missing}")


@dataclass(frozen=True, slots=True)
class _Row:
    """What was measured of one file."""

    name: str
    path: Path
    p50_ms: float
    p95_ms: float
    ratio: float
    ratio_interval: tuple[float, float]

    def judged(self, accuracies: Mapping[str, float] | None, file: QuantizedFile | None, max_drop: float) -> Variant:
        """The row of the table; `file` is None for fp32."""
        accuracy = None if accuracies is None else accuracies[self.name]
        drop, within = (0.0, True) if file is None else (file.drop_points, file.within_budget)
        if accuracies is not None:
            drop = ACCURACY.drop(accuracies[FLOAT], accuracies[self.name])
            within = is_within(drop, max_drop)
        return Variant(
            name=self.name,
            path=str(self.path),
            size_bytes=self.path.stat().st_size,
            accuracy=accuracy,
            drop_points=drop,
            within_budget=within,
            p50_ms=self.p50_ms,
            p95_ms=self.p95_ms,
            ratio=self.ratio,
            ratio_interval=self.ratio_interval,
            verdict="the reference" if file is None else "; ".join((self._speed(), *_budget(within, drop, max_drop))),
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


def _budget(within: bool, drop: float | None, max_drop: float) -> tuple[str, ...]:
    if within:
        return ()
    return ("out of budget" if drop is None else f"out of budget: drops {drop:.2f} points (at most {max_drop:g})",)


def _choice(variants: Sequence[Variant]) -> tuple[str, str]:
    """The name of the one to ship and why."""
    reference, *others = variants
    if not others:
        return FLOAT, "nothing else was made"
    affordable = [variant for variant in others if variant.within_budget]
    if not affordable:
        return FLOAT, "no other keeps the accuracy budget"
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
