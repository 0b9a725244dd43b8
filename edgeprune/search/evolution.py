"""Evolution of width vectors: the best of a population are mixed and changed, always within the budgets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeprune.search.vectors import Space, distinct

_SIZE = 64  # vectors that live on
_GENERATIONS = 25
_CHANGED = 0.3  # of the groups of a child
_SPREAD = 0.4  # of what a change multiplies a group's share by, as a logarithm


def evolved(
    space: Space, loss_of: Callable[[np.ndarray], np.ndarray], first: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Distinct vectors, `(at most 64, n_groups)`, those of the least foretold loss first.

    Args:
        loss_of: what is foretold of vectors, `(n, n_groups)` in, `(n,)` out.
        first: vectors to start from, `(n, n_groups)`, within the budgets.
    """
    living = _best(loss_of, first)
    for _ in range(_GENERATIONS):
        shares = space.shares(living)
        mothers, fathers = (_picked(len(living), rng) for _ in range(2))
        child = np.where(rng.random((_SIZE, shares.shape[1])) < 0.5, shares[mothers], shares[fathers])
        change = np.exp(_SPREAD * rng.standard_normal(child.shape))
        child = np.clip(child, 1e-2, 1.0) * np.where(rng.random(child.shape) < _CHANGED, change, 1.0)
        living = _best(loss_of, np.concatenate([living, space.within(child, rng)]))
    return living


def _picked(n: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of parents, `(64,)`: the better of two that are drawn."""
    return rng.integers(0, n, (2, _SIZE)).min(0)


def _best(loss_of: Callable[[np.ndarray], np.ndarray], counts: np.ndarray) -> np.ndarray:
    own = distinct(counts)
    return own[np.argsort(loss_of(own), kind="stable")[:_SIZE]]
