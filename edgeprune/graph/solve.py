"""Which units are one and which are locked: the equalities that the rules find, solved over all passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from edgeprune.graph.labels import FIXED


@dataclass(frozen=True, slots=True)
class Reason:
    """Why units are locked: what happened, at which node of the graph, and what would unlock them."""

    message: str
    node: str
    remedy: str = ""


class Solver:
    """Equalities between units, collected during a pass over the graph and merged at its end.

    `canonical[id]` is the component of a unit, 0 where it is locked.
    """

    def __init__(self) -> None:
        self.component = np.zeros(1, dtype=np.int64)  # id -> smallest id of its component
        self.reason = np.full(1, -1, dtype=np.int64)  # component -> index into reasons, -1 where it is free
        self.reasons: list[Reason] = []
        self.n_ids = 1
        self._canonical: np.ndarray | None = None
        self._left: list[np.ndarray] = []
        self._right: list[np.ndarray] = []
        self._locks: list[tuple[np.ndarray, int]] = []

    @property
    def canonical(self) -> np.ndarray:
        """Id -> component, or 0 for locked ones, `(n_ids,)`; not to be written to."""
        self._grow()
        if self._canonical is None:
            self._canonical = np.where(self.reason[self.component] >= 0, FIXED, self.component)
        return self._canonical

    def fresh(self, count: int) -> np.ndarray:
        """Ids of `count` new units."""
        ids = np.arange(self.n_ids, self.n_ids + count)
        self.n_ids += count
        return ids

    def _grow(self) -> None:
        """Make room for all units that were handed out since."""
        start = len(self.component)
        if start < self.n_ids:
            self.component = np.concatenate([self.component, np.arange(start, self.n_ids)])
            self.reason = np.concatenate([self.reason, np.full(self.n_ids - start, -1)])
            self._canonical = None

    def unite(self, left: Tensor, right: Tensor, reason: Reason) -> None:
        """The units of both stand or fall together, element by element; one that meets a fixed element is locked."""
        if left.shape != right.shape:
            right = right.expand_as(left)
        a, b = left.reshape(-1).numpy(), right.reshape(-1).numpy()
        both = (a > 0) & (b > 0) & (a != b)
        if both.any():
            one, other = _distinct_pairs(a[both], b[both])
            self._left.append(one)
            self._right.append(other)
        for mine, other in ((a, b), (b, a)):
            meets_fixed = (mine > 0) & (other == FIXED)
            if meets_fixed.any():
                self._lock(mine[meets_fixed], reason)

    def lock(self, labels: Tensor, reason: Reason) -> None:
        """No unit among `labels` may be removed."""
        flat = labels.reshape(-1).numpy()
        if (flat > 0).any():
            self._lock(flat[flat > 0], reason)

    def _lock(self, ids: np.ndarray, reason: Reason) -> None:
        self._locks.append((_distinct(ids, self.n_ids), len(self.reasons)))
        self.reasons.append(reason)

    def merge(self) -> bool:
        """Merge what was collected since the last merge; whether anything changed."""
        changed = False
        self._grow()
        self._canonical = None
        if self._left:
            left, right = np.concatenate(self._left), np.concatenate(self._right)
            changed = self._merge_components(self.component[left], self.component[right])
        for ids, index in self._locks:
            components = self.component[ids]
            free = components[self.reason[components] < 0]
            self.reason[free] = index
            changed = changed or bool(len(free))
        self._left, self._right, self._locks = [], [], []
        return changed

    def _merge_components(self, left: np.ndarray, right: np.ndarray) -> bool:
        size = len(self.component)
        edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(size, size))
        _, group = connected_components(edges, directed=False)
        smallest = np.full(group.max() + 1, size)
        np.minimum.at(smallest, group, np.arange(size))
        merged = smallest[group[self.component]]
        changed = not np.array_equal(merged, self.component)
        # The first reason that locked any part locks the whole.
        locked = np.flatnonzero(self.reason >= 0)
        first = np.full(size, np.iinfo(np.int64).max)
        np.minimum.at(first, merged[locked], self.reason[locked])
        self.reason = np.where(first == np.iinfo(np.int64).max, -1, first)
        self.component = merged
        return changed


def count_units(labels: np.ndarray, keep_dim: int) -> int:
    """How many units are left free when `labels` `(n, m, ...)` may vary along `keep_dim` only.

    Each slice along `keep_dim` becomes one unit; slices that share a label are one, one with a fixed element is none.
    """
    rows = np.moveaxis(labels, keep_dim, 0).reshape(labels.shape[keep_dim], -1)
    ids, inverse = _numbered(rows)
    n_rows, n_ids = rows.shape[0], len(ids)
    row_index = np.repeat(np.arange(n_rows), rows.shape[1])
    pairs = _distinct(row_index * n_ids + inverse, n_rows * n_ids)
    edges = coo_array(
        (np.ones(len(pairs), dtype=np.int8), (pairs // n_ids, n_rows + pairs % n_ids)), shape=(n_rows + n_ids,) * 2
    )
    n_components, _ = connected_components(edges, directed=False)
    if ids[0] == FIXED:
        return int(n_components - 1)
    return int(n_components)


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels, ascending, and for each element the number of its label; as numpy.unique, which sorts."""
    flat = labels.reshape(-1)
    low = int(flat.min())
    span = int(flat.max()) - low + 1
    if span > 8 * len(flat):
        return np.unique(flat, return_inverse=True)
    present = np.zeros(span, dtype=bool)
    present[flat - low] = True
    return np.flatnonzero(present) + low, (np.cumsum(present) - 1)[flat - low]


def _distinct(numbers: np.ndarray, bound: int) -> np.ndarray:
    """The distinct ones of numbers in [0, bound), ascending."""
    if bound > 8 * len(numbers):
        return np.unique(numbers)
    present = np.zeros(bound, dtype=bool)
    present[numbers] = True
    return np.flatnonzero(present)


def _distinct_pairs(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same pairs, each once where there are many over few labels: two dims of positions have millions."""
    low, low_right = int(left.min()), int(right.min())
    span, span_right = int(left.max()) - low + 1, int(right.max()) - low_right + 1
    if span * span_right > len(left):
        return left, right
    numbers = _distinct((left - low) * span_right + (right - low_right), span * span_right)
    return numbers // span_right + low, numbers % span_right + low_right
