"""Which predictor is taken: the one whose order of networks it has not seen agrees best with the measured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.predictors.base import Predict, Predictor, log_rises

_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The predictor called `name`, fitted to all networks; `taus` are those of each kind, on networks left out."""

    name: str
    predict: Predict
    taus: Mapping[str, float]


def choose(predictors: Sequence[Predictor], x: np.ndarray, losses: np.ndarray, seed: int) -> Chosen:
    """Cross-validate each predictor in five parts by Kendall's tau, and fit the best one to all.

    Args:
        x: `(n, n_groups, n_features)`, what the groups of n networks have; n is 10 or more.
        losses: `(n,)`, what was measured of them; higher is worse.
        seed: of the parts, and of what the predictors draw.
    """
    y = log_rises(losses)
    parts = np.random.default_rng(seed).permutation(len(y)) % _FOLDS
    taus = {one.name: tau(_left_out(one, x, y, parts, seed), y) for one in predictors}
    best = max(predictors, key=lambda one: taus[one.name])
    return Chosen(best.name, best.fitted(x, y, seed), taus)


def tau(predicted: np.ndarray, losses: np.ndarray) -> float:
    """Kendall's tau-b of two orders, from -1 to 1; 0 where one of them is no order at all."""
    from scipy.stats import kendalltau  # here, because importing scipy.stats takes half a second

    found = float(kendalltau(predicted, losses).statistic)
    return 0.0 if np.isnan(found) else found


def _left_out(predictor: Predictor, x: np.ndarray, y: np.ndarray, parts: np.ndarray, seed: int) -> np.ndarray:
    """What is predicted of each network by the others' parts, `(n,)`."""
    found = np.zeros(len(y))
    for part in range(_FOLDS):
        mine = parts == part
        found[mine] = predictor.fitted(x[~mine], y[~mine], seed)(x[mine])
    return found
