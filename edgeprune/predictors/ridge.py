"""The linear baseline: ridge regression, its penalty chosen by leaving each network out once."""

from __future__ import annotations

import numpy as np

from edgeprune.predictors.base import Predict, Scale

_PENALTIES = 10.0 ** np.arange(-3, 5)


class Ridge:
    """A weighted sum over all groups of what each has."""

    @property
    def name(self) -> str:
        """What it is called."""
        return "linear"

    def fitted(self, x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
        """Fit by the singular values; the errors of leaving one out have a closed form (Golub et al., 1979)."""
        flat = x.reshape(len(x), -1)
        scale, mean = Scale.of(flat), y.mean()
        u, s, vt = np.linalg.svd(scale(flat), full_matrices=False)
        along = u.T @ (y - mean)
        best, weights = np.inf, np.zeros(flat.shape[1])
        for penalty in _PENALTIES:
            shrink = s**2 / (s**2 + penalty)
            lever = (u**2 * shrink).sum(1) + 1 / len(y)
            error = float((((y - mean - u @ (shrink * along)) / (1 - lever).clip(min=1e-6)) ** 2).mean())
            if error < best:
                best, weights = error, vt.T @ (s / (s**2 + penalty) * along)
        return lambda more: scale(more.reshape(len(more), -1)) @ weights + mean
