"""What the optimizers' options may be; each rule is said once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from edgeprune.errors import InputError


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers above `above`, or from `least` on, up to `most` or below `below`."""

    above: float | None = None
    least: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the value is finite and inside."""
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"above": self.above, "at least": self.least, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)


POSITIVE = Range(above=0.0)
NOT_NEGATIVE = Range(least=0.0)
SHARE = Range(above=0.0, most=1.0)
SHARE_OR_ZERO = Range(least=0.0, most=1.0)
BELOW_ONE = Range(least=0.0, below=1.0)


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Refuse what is no number, NaN, infinite or out of range.

    Raises:
        InputError: says the option, the range and the value.
    """
    is_number = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
    if not is_number or isinstance(value, bool) or not allowed.holds(float(value)):
        raise InputError(f"{name}: expected a number {allowed}, got {value}")


def check_options(options: Mapping[str, Any], ranges: Mapping[str, Range], optional: Collection[str]) -> None:
    """Check every option that has a range; those in `optional` may be None.

    Raises:
        InputError: the first that does not fit.
    """
    for name, allowed in ranges.items():
        if options[name] is not None or name not in optional:
            check_range(name, options[name], allowed)
