"""How sure one can be of an accuracy or another metric, and of a difference between two."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError
from edgeprune.results import AccuracyComparison

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_Z_ONE_SIDED = 1.6448536269514722  # 95 %
FEWEST = 20  # samples that tell a network from luck
_ROUNDING = 1e-9
_RESAMPLES = 1000
_MOST_DRAWN = 2**22  # indices at a time
_SLIGHT = 0.2  # kappa below which agreement is slight (Landis and Koch 1977)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of an accuracy, as fractions (Wilson 1927).

    Example: `wilson(9, 10)` is about (0.596, 0.982).

    Raises:
        InputError: no samples, or `correct` outside 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise InputError(f"expected 0 <= correct <= n with n of at least 1, got correct={correct}, n={n}")
    share = correct / n
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / n + (Z95 / (2 * n)) ** 2)
    # At 0 and n the bound is exactly the end; rounding must not put it past the share itself.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


@dataclass(frozen=True, slots=True)
class Luck:
    """Predicted classes beside what their frequencies give by luck: the same predictions, the labels shuffled.

    `accuracy` is the share that is right, `expected` its mean under shuffling and `spread` its standard deviation.
    """

    accuracy: float
    expected: float
    spread: float
    n_samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """What 95 % of the shuffles give."""
        return max(0.0, self.expected - Z95 * self.spread), min(1.0, self.expected + Z95 * self.spread)

    @property
    def is_chance(self) -> bool:
        """Whether nothing tells the predictions from luck, on samples enough to tell.

        What is better than luck by a fifth of what could be (Cohen's kappa of 0.2) is not called luck because the
        samples are few. Nor are fewer than 20 samples, or labels of one class, judged.
        """
        if self.n_samples < FEWEST or self.expected >= 1:
            return False
        kappa = (self.accuracy - self.expected) / (1 - self.expected)
        return kappa < _SLIGHT and self.accuracy <= self.expected + _Z_ONE_SIDED * self.spread + _ROUNDING


def luck(predicted: np.ndarray, labels: np.ndarray) -> Luck:
    """How well predictions `(n_samples,)` agree with labels `(n_samples,)`, and how well they would by luck.

    A constant prediction is right as often as its class occurs, which is luck, however often that is. Mean and variance
    are those of a permutation statistic (Hoeffding 1951): with a_k predictions and b_k labels of class k,
    mean = sum a_k b_k / n.

    Raises:
        InputError: no samples, or different lengths.
    """
    if predicted.ndim != 1 or predicted.shape != labels.shape or predicted.size == 0:
        raise InputError(f"expected predictions and labels (n_samples,), got {predicted.shape} and {labels.shape}")
    n, n_classes = predicted.size, 1 + int(max(predicted.max(), labels.max()))
    a, b = (np.bincount(values, minlength=n_classes) / n for values in (predicted, labels))
    together = float((a * b).sum())
    variance = (together - float((a * b * (a + b)).sum()) + together**2) / max(1, n - 1)
    return Luck(float((predicted == labels).mean()), together, math.sqrt(max(0.0, variance)), n)


def compare_accuracy(dense_correct: np.ndarray, slim_correct: np.ndarray) -> AccuracyComparison:
    """Dense against slim on the same samples.

    The interval of the drop is the adjusted Wald interval for paired proportions (Bonett and Price 2012), which holds
    its level on small samples and stays wider than zero where the two agree on every one; p is McNemar's exact test.

    Args:
        dense_correct: bool `(n_samples,)`.
        slim_correct: bool `(n_samples,)`, in the same order.

    Raises:
        InputError: no samples, or different lengths.
    """
    dense, slim = np.asarray(dense_correct, bool), np.asarray(slim_correct, bool)
    if dense.ndim != 1 or dense.shape != slim.shape or dense.size == 0:
        raise InputError(f"expected two outcomes (n_samples,) of the same samples, got {dense.shape} and {slim.shape}")
    n = dense.size
    lost, gained = int((dense & ~slim).sum()), int((~dense & slim).sum())
    n_dense, n_slim = int(dense.sum()), int(slim.sum())
    return AccuracyComparison(
        dense=n_dense / n,
        slim=n_slim / n,
        dense_interval=wilson(n_dense, n),
        slim_interval=wilson(n_slim, n),
        drop_points=100.0 * (lost - gained) / n,
        drop_interval=_paired_interval(lost, gained, n),
        mcnemar_p=_mcnemar(lost, gained),
        n_samples=n,
    )


def paired_bootstrap(
    n_samples: int, statistic: Callable[[np.ndarray], np.ndarray], n_values: int, resamples: int = 0
) -> list[tuple[float, float] | None]:
    """The 95 % percentile intervals of several values over samples that are drawn anew, the same ones for all values.

    What is drawn does not depend on the machine. Of a single sample nothing can be said: None.

    Args:
        statistic: of counts int `(n_resamples, n_samples)`, how often each sample was drawn, `(n_values, n_resamples)`.
        resamples: how often all are drawn; 0 takes 1,000.
    """
    if n_samples < 2:
        return [None] * n_values
    from scipy.stats import bootstrap  # here, because importing scipy.stats takes half a second

    def of_drawn(index: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = index.reshape(-1, n_samples)
        starts = n_samples * np.arange(len(rows))[:, None]
        counts = np.bincount((rows + starts).ravel(), minlength=rows.size).reshape(rows.shape)
        return statistic(counts).reshape(n_values, *index.shape[:-1])

    found = bootstrap(
        (np.arange(n_samples),),
        of_drawn,
        n_resamples=resamples or _RESAMPLES,
        batch=max(1, _MOST_DRAWN // n_samples),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(found.low, found.high, strict=True)]


def _paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """95 % interval of 100 * (lost - gained) / n, in points."""
    p_lost, p_gained = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    centre = p_lost - p_gained
    half = Z95 * math.sqrt((p_lost + p_gained - centre**2) / (n + 2))
    return 100.0 * max(-1.0, centre - half), 100.0 * min(1.0, centre + half)


def _mcnemar(lost: int, gained: int) -> float:
    """Two-sided p that samples are lost and gained with the same probability; 1 where none is either."""
    if lost + gained == 0:
        return 1.0
    from scipy.special import bdtr  # of scipy.stats' test of it, whose import takes half a second, no more is needed

    return min(1.0, 2.0 * float(bdtr(min(lost, gained), lost + gained, 0.5)))
