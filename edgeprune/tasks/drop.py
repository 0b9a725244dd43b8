"""The drop: what a network loses against another, and whether a budget allows it. It is judged here alone."""

from __future__ import annotations

import math

_ROUNDING = 1e-9  # points: what a difference of two shares is off by, at most


def drop_points(dense: float, slim: float) -> float:
    """The accuracy that is lost, in points, of two accuracies in [0, 1]; negative where it is won."""
    return (dense - slim) * 100


def is_within(drop: float, limit: float | None) -> bool:
    """Whether a drop is at most the limit, both in points; None allows any.

    Example: 0.98 to 0.97 is 1.0000000000000009 points, and within 1.
    """
    return limit is None or drop <= limit + _ROUNDING


def standard_error(dense: float, slim: float, n_samples: int) -> float:
    """That of a drop between accuracies in [0, 1] on so many samples, in points."""
    return 100 * math.sqrt((slim * (1 - slim) + dense * (1 - dense)) / n_samples)
