"""What may be lost: an amount in the metric's unit, or a share of what the dense network has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgeprune.errors import InputError
from edgeprune.records import POINTS, Metric

_DROP = re.compile(r"\s*(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>\S.*?)?\s*")
_ROUNDING = 1e-9  # what a difference is off by, at most
RELATIVE = "%"
_MOST = 100  # per cent


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """The largest drop. `unit` is None (the metric's own), the metric's by name, or "%" of the dense network's value.

    Example: of an accuracy of 0.8 `MaxDrop(1.5)` allows 1.5 points and `MaxDrop(2, "%")` 1.6.
    """

    amount: float
    unit: str | None = None

    def __str__(self) -> str:
        return f"{self.amount:g}{'' if self.unit in (None, RELATIVE) else ' '}{self.unit or ''}"

    def limit(self, metric: Metric, dense: float) -> float:
        """In the metric's unit.

        Raises:
            InputError: a unit that the metric has not.
        """
        if self.unit == RELATIVE:
            return self.amount / 100 * abs(dense) * metric.scale
        if self.unit not in (None, metric.unit):
            own = f"{metric.unit} or {RELATIVE}" if metric.unit else f"a bare number or {RELATIVE}"
            raise InputError(f"--max-drop: expected {own}, as {metric.name} is measured in, got {self.unit[:40]!r}")
        return self.amount


def is_within(drop: float, limit: float | None) -> bool:
    """Whether a drop is at most the limit, both in the metric's unit; None allows any. It is judged here alone.

    Example: of an accuracy 0.98 to 0.97 is 1.0000000000000009 points, and within 1.
    """
    return limit is None or drop <= limit + _ROUNDING


def parse_max_drop(text: str) -> MaxDrop:
    """From what is written: `1.5`, `2%`, `1.5 points`, `3 mmol`; `str` of what it gives can be read again.

    Raises:
        InputError: no number of at least 0 in front.
    """
    match = _DROP.fullmatch(text)
    if match is None or not math.isfinite(float(match["amount"])):
        raise InputError(f"--max-drop: expected a number of at least 0, with % or the metric's unit, got {text[:40]!r}")
    return MaxDrop(float(match["amount"]), match["unit"])


_ASSUMED_POINTS = MaxDrop(1.0)  # where nothing is said
_ASSUMED_SHARE = MaxDrop(1.0, RELATIVE)  # of what is not measured in points


def drop_of(asked: float | str | None, metric: Metric) -> MaxDrop:
    """What may be lost: as asked for, else what is assumed.

    Raises:
        InputError: no such number, a unit that the metric has not, or more points than there are.
    """
    if asked is None:
        return _ASSUMED_POINTS if metric.unit == POINTS else _ASSUMED_SHARE
    found = parse_max_drop(str(asked))
    found.limit(metric, 1.0)
    if found.unit == RELATIVE and found.amount > _MOST:
        raise InputError(f"--max-drop: expected at most {_MOST} % of what the dense network has, got {found}")
    if found.unit != RELATIVE and metric.unit == POINTS and found.amount > metric.scale:
        raise InputError(f"--max-drop: expected {metric.name} points in [0, {metric.scale:g}], got {found}")
    return found
