"""Files of smaller numbers against the float file: as they mean it, and as this CPU computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeprune.errors import InputError, NotFiniteError
from edgeprune.export.exact import meaning
from edgeprune.export.floatfile import Agreement, FloatFile, agreement
from edgeprune.files import real_path
from edgeprune.records import ACCURACY, Metric, VariantKind
from edgeprune.tasks.budget import is_within

MIN_SNR_DB = 20.0  # without labels or classes: an error of a tenth of the outputs
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """A written file of smaller numbers, run on real inputs.

    `drop` is what is lost against the float file on this CPU, in the metric's unit; without a metric the percentage of
    inputs whose best class changed; None where the network has no classes either. `snr_db` and `agreement` (of the best
    class, a fraction) compare its outputs with the float file's. `exact_value`, `exact_drop` and `exact_snr_db` are of
    what the file means, with no product saturating; None where it holds no integers. `excluded` names the layers left
    in float, of `n_layers`. `within_budget` says whether it may be shipped: both ways keep the budget; `note` in words
    what there is to know.
    """

    kind: VariantKind
    path: str
    size_bytes: int
    drop: float | None
    snr_db: float
    agreement: float | None
    excluded: tuple[str, ...]
    n_layers: int
    within_budget: bool
    note: str
    exact_value: float | None = None
    exact_drop: float | None = None
    exact_snr_db: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a file costs in one way of computing it; `value` is that of the metric, None where nothing measures it."""

    value: float | None
    drop: float | None
    agreement: Agreement
    within_budget: bool

    @property
    def cost(self) -> float:
        """The lower, the closer to the float file."""
        return -self.agreement.snr_db if self.drop is None else self.drop


@dataclass(frozen=True, slots=True)
class Judged:
    """A file and what it costs: on this CPU (`here`), and as it is meant; None where it holds no integers."""

    path: Path
    here: Outcome
    meant: Outcome | None

    @property
    def worst(self) -> Outcome:
        """The one of both that costs more."""
        return max((self.meant or self.here, self.here), key=lambda outcome: outcome.cost)

    @property
    def within_budget(self) -> bool:
        """Whether it may be shipped, whatever computes it."""
        return self.here.within_budget and (self.meant is None or self.meant.within_budget)

    @property
    def cost(self) -> float:
        """The lower, the closer to the float file."""
        return self.worst.cost


@dataclass(slots=True, eq=False)
class Judge:
    """Measures files against the float file, whose own value is measured once."""

    file: FloatFile
    value: Callable[[Path], float] | None
    metric: Metric
    max_drop: float
    threads: int
    _baseline: float | None = field(default=None, init=False)

    def __call__(self, path: Path) -> Judged:
        """Run and measure `path`, and what it means.

        Raises:
            ParityError: it does not run.
            NotFiniteError: it gives NaN or infinity.
        """
        here = self._outcome(path)
        exact = meaning(path, exact_beside(path))
        return Judged(path, here, None if exact is None else here if exact == path else self._outcome(exact))

    def snr_db(self, path: Path, n_feeds: int) -> float:
        """The signal-to-noise ratio of a file on the first inputs, the lower one of what it means and gives here.

        Minus infinity for one that gives NaN or infinity: nothing is further from the float file.
        """
        file = replace(self.file, feeds=self.file.feeds[:n_feeds], outputs=self.file.outputs[:n_feeds])
        ways = {path, meaning(path, exact_beside(path)) or path}
        try:
            return min(agreement(file, way, self.threads).snr_db for way in ways)
        except NotFiniteError:
            return -math.inf

    def _outcome(self, path: Path) -> Outcome:
        agrees = agreement(self.file, path, self.threads)
        if self.metric != ACCURACY:  # two columns of numbers are no classes
            agrees = replace(agrees, argmax=None)
        value, drop = self._drop(path, agrees)
        within = agrees.snr_db >= MIN_SNR_DB if drop is None else is_within(drop, self.max_drop)
        return Outcome(value, drop, agrees, within)

    def _drop(self, path: Path, agrees: Agreement) -> tuple[float | None, float | None]:
        """The metric's value, and what is lost of it."""
        if self.value is None:
            return None, None if agrees.argmax is None else 100 * (1 - agrees.argmax)
        if self._baseline is None:
            self._baseline = self.value(self.file.path)
        value = self.value(path)
        return value, self.metric.drop(self._baseline, value)

    def in_words(self, outcome: Outcome) -> str:
        """What a file costs and what was asked, e.g. `a drop of 0.30 points (at most 1 asked)`."""
        if outcome.drop is None:
            return f"a signal-to-noise ratio of {outcome.agreement.snr_db:.1f} dB (at least {MIN_SNR_DB:g} asked)"
        asked = f"(at most {self.max_drop:g} asked)"
        if self.value is None:
            return f"another best class on {outcome.drop:.2f} % of the calibration inputs {asked}"
        return (
            f"a {_worse(self.metric)} of {self.metric.number(outcome.drop)} {self.metric.unit}".rstrip() + f" {asked}"
        )

    def missed(self, judged: Judged) -> str:
        """The budget that a file misses, in words; where only one way of computing it does, that is said."""
        meant = judged.meant or judged.here
        if judged.here.within_budget or meant.within_budget:
            where = "as it means it" if judged.here.within_budget else "on this CPU, though not as the file means it"
            return f"out of budget: {self.in_words(judged.worst)} {where}; ship the float file"
        return f"out of budget: {self.in_words(judged.worst)}; ship the float file"


def exact_beside(path: Path) -> Path:
    """Where a judge writes what a file means."""
    return path.with_name(f"{path.stem}.exact.onnx")


def _worse(metric: Metric) -> str:
    return "drop" if metric.higher_is_better else f"rise of {metric.name}"


def left_in_float(file: QuantizedFile) -> str:
    """Which layers are not quantised, e.g. `2 of 7 layers left in float: stem, head`; nothing where all are."""
    if not file.excluded:
        return ""
    return f"{len(file.excluded)} of {file.n_layers} layers left in float: {shortened(file.excluded)}"


def shortened(names: Sequence[str]) -> str:
    """The first of some names, e.g. `stem, head`."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def check_places(source: Path, out: Path, max_drop: float) -> None:
    """Raise InputError where the file would replace the float file, or the budget is no number."""
    if real_path(out) == real_path(source):
        raise InputError(f"{out}: expected another file than the float one to write to")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError(f"drop: expected a number of at least 0, got {max_drop}")


def record_of(kind: VariantKind, judged: Judged, out: Path, excluded: Sequence[str], n_layers: int) -> QuantizedFile:
    """What there is to say of a file that now lies at `out`."""
    meant = judged.meant
    return QuantizedFile(
        kind=kind,
        path=str(out),
        size_bytes=out.stat().st_size,
        drop=judged.here.drop,
        snr_db=judged.here.agreement.snr_db,
        agreement=judged.here.agreement.argmax,
        excluded=tuple(excluded),
        n_layers=n_layers,
        within_budget=judged.within_budget,
        note="",
        exact_value=None if meant is None else meant.value,
        exact_drop=None if meant is None else meant.drop,
        exact_snr_db=None if meant is None else meant.agreement.snr_db,
    )
