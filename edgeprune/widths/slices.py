"""What a tensor of a narrower network's file is of the widest one's: some of its rows and columns, perhaps scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune.export.factors import factor_between


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
        factor = factor_between(taken, narrow)
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
