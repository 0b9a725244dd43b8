"""Width vectors: how many units each group keeps, all within the budgets and at the widths that layers may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.cost.limits import Limit
from edgeprune.pruning.choosing import Chooser, Pruning

_HALVINGS = 20
_RANGE = 1e3  # how much faster or slower than wished all groups shrink together
_SLOWEST = 1e-2  # the log share of a group that is wished whole: it shrinks last, but it does
_TRIES = 8  # draws for each vector that is asked for, before there are taken to be no more
_SPREADS = (0.3, 2.0)  # of the log shares of a draw, over the groups


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """The choices of one cut: `free` groups have one of their `widths`, ascending; others what the `greedy` one has.

    All counts are int64, `(n_groups,)` for one network and `(n, n_groups)` for several.
    """

    greedy: np.ndarray
    free: tuple[int, ...]
    widths: tuple[np.ndarray, ...]
    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, pruning: Pruning, features: bool) -> Space:
        """What a pruning that has not run may choose; it has run then, and its counts are the greedy ones.

        Input features that have prices of their own go by these, not by what is lost: they are as greedy as before.

        Raises:
            BudgetError: as `pruning.run`.
        """
        chooser, graph = pruning.chooser, pruning.chooser.graph
        widths = {
            g: _widths(chooser, g)
            for g in pruning.eligible
            if not graph.groups[g].is_input or (features and not graph.feature_prices)
        }
        pruning.run(features)
        free = tuple(g for g, own in widths.items() if len(own) > 1)
        return cls(chooser.counts.astype(int), free, tuple(widths[g] for g in free), tuple(pruning.limits))

    def sampled(self, n: int, rng: np.random.Generator, most: float = 1.0) -> np.ndarray:
        """At most n vectors, no two alike, that use what they may; fewer where there are no more to be found.

        Args:
            most: their budgets are spread evenly, in proportion, from those of the space to so many times them.
        """
        found: dict[bytes, np.ndarray] = {}
        for _ in range(_TRIES):
            spread = rng.uniform(*_SPREADS, (n, 1))
            shares = np.exp(-np.exp(spread * rng.standard_normal((n, len(self.free)))))
            levels = most ** rng.random(n)
            for counts in self.within(shares, rng, levels):
                found.setdefault(counts.tobytes(), counts)
            if len(found) >= n:
                break
        return np.array(list(found.values())[:n]).reshape(-1, len(self.greedy))

    def shares(self, counts: np.ndarray) -> np.ndarray:
        """How far the free groups are from their narrowest widths, 0, to their widest, 1: `(n, n_free)`."""
        parts = [(counts[:, g] - own[0]) / (own[-1] - own[0]) for g, own in zip(self.free, self.widths, strict=True)]
        return np.stack(parts, 1)

    def within(self, shares: np.ndarray, rng: np.random.Generator, levels: np.ndarray | None = None) -> np.ndarray:
        """The vectors of wished shares `(n, n_free)`, all their groups narrowed or widened until the budgets just hold.

        What is left of the budgets is used up in an order that is drawn. `levels` `(n,)` are how many times the budgets
        each may cost.
        """
        levels = np.ones(len(shares)) if levels is None else levels
        slowness = (-np.log(np.clip(shares, 1e-9, 1.0))).clip(min=_SLOWEST)
        low, high = np.full(len(shares), -np.log(_RANGE)), np.full(len(shares), np.log(_RANGE))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            held = self._held(self._at(slowness, middle), levels)
            low, high = np.where(held, low, middle), np.where(held, middle, high)
        return self._filled(self._at(slowness, high), levels, rng)

    def _at(self, slowness: np.ndarray, speed: np.ndarray) -> np.ndarray:
        wished = np.exp(-np.exp(speed)[:, None] * slowness)
        counts = np.tile(self.greedy, (len(wished), 1))
        for column, (g, own) in enumerate(zip(self.free, self.widths, strict=True)):
            units = own[0] + (own[-1] - own[0]) * wished[:, column]
            counts[:, g] = own[np.searchsorted(own, units + 1e-9, side="right") - 1]
        return counts

    def _held(self, counts: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Bool `(n,)`: whether the budgets hold."""
        costs = [limit.model.costs(counts) <= limit.most * levels for limit in self.limits]
        return np.logical_and.reduce(costs)

    def _filled(self, counts: np.ndarray, levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Each group in turn one width wider, where that is within the budgets."""
        for place in rng.permutation(len(self.free)):
            g, own = self.free[place], self.widths[place]
            wider = counts.copy()
            wider[:, g] = own[np.minimum(np.searchsorted(own, counts[:, g]) + 1, len(own) - 1)]
            counts = np.where(self._held(wider, levels)[:, None], wider, counts)
        return counts


def distinct(counts: np.ndarray) -> np.ndarray:
    """The rows without those that came before, in their order."""
    _, first = np.unique(counts, axis=0, return_index=True)
    return counts[np.sort(first)]


def _widths(chooser: Chooser, group: int) -> np.ndarray:
    """The counts that a group may have, ascending: aligned ones, and what it has."""
    count, step = int(chooser.counts[group]), chooser.steps[group]
    lower: Sequence[int] = range((count - 1) // step * step, max(1, chooser.floors[group]) - 1, -step)
    return np.array([count, *lower][::-1])
