"""What may be lost: an amount in the metric's unit, or a share of what the dense network has."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgeprune.errors import InputError
from edgeprune.records import Metric

_DROP = re.compile(r"\s*(?P<amount>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>\S.*?)?\s*")
_ROUNDING = 1e-9
RELATIVE = "%"


@dataclass(frozen=True, slots=True)
class MaxDrop:
    """The largest drop. `unit` is None (the metric's own), the metric's by name, or "%" of the dense network's value.

    Example: of an accuracy of 0.8 `MaxDrop(1.5)` allows 1.5 points and `MaxDrop(2, "%")` 1.6.
    """

    amount: float
    unit: str | None = None

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

    def allows(self, metric: Metric, dense: float, slim: float, share: float = 1.0) -> bool:
        """Whether what is lost from `dense` to `slim` is within the drop, or within a share of it."""
        return metric.drop(dense, slim) <= share * self.limit(metric, dense) + _ROUNDING


def parse_max_drop(text: str) -> MaxDrop:
    """From what is written: `1.5`, `2%`, `1.5 points`, `3 mmol`.

    Raises:
        InputError: no number of at least 0 in front.
    """
    match = _DROP.fullmatch(text)
    if match is None or not math.isfinite(float(match["amount"])):
        raise InputError(f"--max-drop: expected a number of at least 0, with % or the metric's unit, got {text[:40]!r}")
    return MaxDrop(float(match["amount"]), match["unit"])
