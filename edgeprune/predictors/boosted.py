"""The boosted baseline: small regression trees, each fitted to what those before it left.

Friedman, Stochastic Gradient Boosting, 2002: squared error, half of the networks and of the columns for each tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.predictors.base import Predict

_TREES = 200
_DEPTH = 3
_RATE = 0.05  # of each tree's answer
_SHARE = 0.5  # of the networks and of the columns that a tree sees
_LEAF = 4  # networks at least


@dataclass(frozen=True, slots=True)
class _Node:
    """Below a `threshold` in a column it goes to the left; a leaf has a value alone."""

    value: float
    column: int = -1
    threshold: float = 0.0
    left: _Node | None = None
    right: _Node | None = None


class Boosted:
    """A sum of trees over all columns of all groups."""

    @property
    def name(self) -> str:
        """What it is called."""
        return "boosted"

    def fitted(self, x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
        """Fit tree after tree."""
        flat, rng = x.reshape(len(x), -1), np.random.default_rng(seed)
        trees, left = [], y - y.mean()
        for _ in range(_TREES):
            rows = rng.permutation(len(y))[: max(2 * _LEAF, int(_SHARE * len(y)))]
            columns = rng.permutation(flat.shape[1])[: max(1, int(_SHARE * flat.shape[1]))]
            trees.append(_grown(flat[rows], left[rows], columns, _DEPTH))
            left = left - _RATE * _answers(trees[-1], flat)

        def predict(more: np.ndarray) -> np.ndarray:
            given = more.reshape(len(more), -1)
            return np.asarray(y.mean() + _RATE * sum(_answers(tree, given) for tree in trees))

        return predict


def _grown(x: np.ndarray, y: np.ndarray, columns: np.ndarray, depth: int) -> _Node:
    """The tree that halves the squared error most, split by split."""
    value = float(y.mean())
    found = _split(x[:, columns], y) if depth and len(y) >= 2 * _LEAF else None
    if found is None:
        return _Node(value)
    column, threshold = int(columns[found[0]]), found[1]
    below = x[:, column] <= threshold
    left, right = (_grown(x[side], y[side], columns, depth - 1) for side in (below, ~below))
    return _Node(value, column, threshold, left, right)


def _split(x: np.ndarray, y: np.ndarray) -> tuple[int, float] | None:
    """The column and the threshold whose two sides differ most; None where no column can be split."""
    order = np.argsort(x, axis=0, kind="stable")
    ordered = np.take_along_axis(x, order, 0)
    sums = np.cumsum(y[order], axis=0)
    n_below = np.arange(1, len(y))[:, None]
    gains = sums[:-1] ** 2 / n_below + (sums[-1] - sums[:-1]) ** 2 / (len(y) - n_below)
    gains[(ordered[1:] <= ordered[:-1]) | (n_below < _LEAF) | (len(y) - n_below < _LEAF)] = -np.inf
    row, column = np.unravel_index(np.argmax(gains), gains.shape)
    if not np.isfinite(gains[row, column]):
        return None
    return int(column), float((ordered[row, column] + ordered[row + 1, column]) / 2)


def _answers(tree: _Node, x: np.ndarray) -> np.ndarray:
    """What a tree says of each row, `(n,)`."""
    if tree.left is None or tree.right is None:
        return np.full(len(x), tree.value)
    below = x[:, tree.column] <= tree.threshold
    return np.where(below, _answers(tree.left, x), _answers(tree.right, x))
