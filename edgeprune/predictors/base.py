"""What a predictor is: fitted to a few networks whose losses were measured, it tells which of others lose less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_QUARTILE = 0.25
Predict = Callable[[np.ndarray], np.ndarray]  # (n, n_groups, n_features) -> (n,), higher loses more


class Predictor(Protocol):
    """A kind of model."""

    @property
    def name(self) -> str:
        """What it is called."""

    def fitted(self, x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
        """The model of what networks lose, `y` `(n,)`, by what their groups have, `x` `(n, n_groups, n_features)`."""


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """What is the same in all networks cut of one: `fixed` `(n_groups, n_fixed)` is known of each of its groups.

    `adjacent` `(n_groups, n_groups)`, bool, says which two share a layer.
    """

    fixed: np.ndarray
    adjacent: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Makes columns comparable: mean 0 and deviation 1 over what it was made of; constant ones become 0."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> Scale:
        """The scale of the first dim's columns, `(n, ...)`."""
        deviation = x.std(0)
        return cls(x.mean(0), np.where(deviation > 1e-12, deviation, np.inf))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The same array, scaled."""
        return np.asarray((x - self.mean) / self.deviation)


def log_rises(losses: np.ndarray) -> np.ndarray:
    """Losses as predictors learn them: the logarithms of how far each is above the best one, float64 `(n,)`.

    Their lower quartile is added, so that small differences among the best count and those among ruined networks hardly
    do, whatever the scale and sign of the loss. What is no finite number counts as twice the worst that is.
    """
    finite = np.isfinite(losses)
    if not finite.any():
        return np.zeros(len(losses))
    rises = losses[finite] - losses[finite].min()
    most = float(rises.max()) or 1.0
    offset = float(np.quantile(rises, _QUARTILE)) or 1e-3 * most
    found = np.full(len(losses), 2 * most)
    found[finite] = rises
    return np.log(found + offset)
