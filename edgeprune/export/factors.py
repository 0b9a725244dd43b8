"""Whether one tensor is another one times a factor for each row, as batch norm that was folded into it leaves it."""

from __future__ import annotations

import numpy as np

_ROUNDING = 4 * np.finfo(np.float32).eps  # of a number that was multiplied and divided once


def factor_between(plain: np.ndarray, scaled: np.ndarray) -> np.ndarray | None:
    """For each index of dim 0 or 1 what `plain` is multiplied with to be `scaled`, of the same shape, to rounding.

    Its shape is that of the tensors with all other dims 1; None where one is no multiple of the other.
    """
    if scaled.dtype != np.float32 or scaled.ndim < 2:
        return None
    a, b = plain.astype(np.float64), scaled.astype(np.float64)
    for dim in (0, 1):
        others = tuple(axis for axis in range(scaled.ndim) if axis != dim)
        power = (a * a).sum(axis=others, keepdims=True)
        factor = np.where(power > 0, (a * b).sum(axis=others, keepdims=True) / np.where(power > 0, power, 1), 1)
        short = factor.astype(np.float32)
        largest = np.abs(b).max(axis=others, keepdims=True)
        if (np.abs(a * short - b) <= _ROUNDING * largest).all():
            return short
    return None
