"""Which samples each client has: evenly, or of its own few classes."""

from __future__ import annotations

import math

import numpy as np

from edgeprune.errors import InputError

_SMALLEST = 1e-100  # below it nothing changes: each client has one class, while there is enough of it


def even(n_samples: int, n_clients: int, seed: int) -> list[np.ndarray]:
    """The samples at random in parts of one size, ascending `(n,)` each; the first may have one more.

    Raises:
        InputError: not two samples for each client.
    """
    _check(n_samples, n_clients)
    order = np.random.default_rng(seed).permutation(n_samples)
    return [np.sort(part) for part in np.array_split(order, n_clients)]


def dirichlet(labels: np.ndarray, n_clients: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Parts of one size, whose classes have shares drawn from a Dirichlet distribution of `alpha` times the data's.

    Hsu, Qi and Brown, arXiv 1909.06335. Each sample is one client's; where a class is used up, what a client would
    have of it is drawn from the classes that are left. The smaller alpha, the fewer classes each client has.

    Args:
        labels: the class of each sample, `(n_samples,)`.

    Raises:
        InputError: not two samples for each client, or an alpha that is not above 0.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"--alpha: expected a number above 0, got {alpha:g}")
    _check(len(labels), n_clients)
    draws = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    piles = [draws.permutation(np.flatnonzero(labels == one)) for one in classes]
    left = counts.copy()
    parts = []
    for size in (len(part) for part in np.array_split(np.arange(len(labels)), n_clients)):
        shares = _dirichlet(alpha * counts / len(labels), draws)
        taken = _drawn(shares, left, size, draws)
        parts.append(np.sort(np.concatenate([pile[n - k : n] for pile, n, k in zip(piles, left, taken, strict=True)])))
        left = left - taken
    return parts


def _check(n_samples: int, n_clients: int) -> None:
    if n_samples < 2 * n_clients:
        raise InputError(f"--clients: expected at most {n_samples // 2}, two samples for each, got {n_clients}")


def _dirichlet(alphas: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Shares `(n_classes,)`, by the logarithms of gamma variables: small ones would all be 0."""
    alphas = np.maximum(alphas, _SMALLEST)
    logs = np.log(draws.standard_gamma(alphas + 1)) + np.log(draws.uniform(size=len(alphas))) / alphas
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def _drawn(shares: np.ndarray, left: np.ndarray, size: int, draws: np.random.Generator) -> np.ndarray:
    """How many of each class, `size` together and no more than there are."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        open_shares = np.where(left > taken, shares, 0.0)
        if open_shares.sum() <= 0:  # those that it would have are used up
            open_shares = (left - taken).astype(float)
        taken += np.minimum(draws.multinomial(missing, open_shares / open_shares.sum()), left - taken)
    return taken
