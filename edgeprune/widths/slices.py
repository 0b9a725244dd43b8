"""What a tensor of a narrower network's file is of the widest one's: some of its rows and columns, perhaps scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

_ROUNDING = 4 * np.finfo(np.float32).eps  # of a number that was multiplied and divided once


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The kept indices of a tensor by dim, ascending; then a factor for each index of one dim, where there is one.

    A factor is what batch norm has made of a row: each width has statistics of its own.
    """

    dims: Mapping[int, np.ndarray]
    factor: np.ndarray | None = None

    def n_first(self, dim: int) -> int | None:
        """How many of the first indices of a dim are kept, if it is those; None for others, or all."""
        kept = self.dims.get(dim)
        return None if kept is None or kept[-1] != len(kept) - 1 else len(kept)


def slice_of(wide: np.ndarray, narrow: np.ndarray, planned: Mapping[int, np.ndarray]) -> Slice | None:
    """How a narrower tensor is found in the widest one; None where it is not there.

    Args:
        planned: the kept indices by dim of the weight of this name, as the plan has them.
    """
    if wide.dtype != narrow.dtype or wide.ndim != narrow.ndim or (np.array(narrow.shape) > wide.shape).any():
        return None
    for dims in _candidates(wide.shape, narrow.shape, planned):
        taken = _taken(wide, dims)
        if np.array_equal(taken, narrow):
            return Slice(dims)
        factor = _factor(taken, narrow)
        if factor is not None:
            return Slice(dims, factor)
    return None


def _candidates(
    wide: tuple[int, ...], narrow: tuple[int, ...], planned: Mapping[int, np.ndarray]
) -> Iterator[dict[int, np.ndarray]]:
    """Kept indices that lead from one shape to the other: the first ones, the planned ones, those of the transposed."""
    yield {dim: np.arange(n) for dim, n in enumerate(narrow) if n < wide[dim]}
    turned = {len(wide) - 1 - dim: kept for dim, kept in planned.items()}
    for dims in (dict(planned), turned):
        shape = list(wide)
        if all(0 <= dim < len(wide) and kept[-1] < wide[dim] for dim, kept in dims.items()):
            for dim, kept in dims.items():
                shape[dim] = len(kept)
            if tuple(shape) == narrow:
                yield dims


def _taken(wide: np.ndarray, dims: Mapping[int, np.ndarray]) -> np.ndarray:
    for dim, kept in dims.items():
        wide = wide.take(kept, axis=dim)
    return wide


def _factor(taken: np.ndarray, narrow: np.ndarray) -> np.ndarray | None:
    """For each index of dim 0 or 1 what the tensor is multiplied with, to rounding; None where it is no multiple.

    Its shape is that of the tensor with all other dims 1.
    """
    if narrow.dtype != np.float32 or narrow.ndim < 2:
        return None
    a, b = taken.astype(np.float64), narrow.astype(np.float64)
    for dim in (0, 1):
        others = tuple(axis for axis in range(narrow.ndim) if axis != dim)
        power = (a * a).sum(axis=others, keepdims=True)
        factor = np.where(power > 0, (a * b).sum(axis=others, keepdims=True) / np.where(power > 0, power, 1), 1)
        short = factor.astype(np.float32)
        largest = np.abs(b).max(axis=others, keepdims=True)
        if (np.abs(a * short - b) <= _ROUNDING * largest).all():
            return short
    return None
