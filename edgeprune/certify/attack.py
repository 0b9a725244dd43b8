"""Projected gradient descent (Madry et al., arXiv 1706.06083): inputs of a box that a network answers wrongly.

What it finds is a fact; what it does not find proves nothing.
"""

from __future__ import annotations

import numpy as np

from edgeprune.certify.intervals import Box
from edgeprune.certify.network import Affine, Network

STEPS = 40
RESTARTS = 3


def margins(network: Network, c: Affine, x: np.ndarray) -> np.ndarray:
    """`(m, batch)` values of an affine function of the values, such as the margins over other classes."""
    return c(network.pre_activations(x)[0])


def least_margin(network: Network, c: Affine, box: Box, seed: int = 0) -> tuple[float, np.ndarray]:
    """The least value of any row of an affine function that was found in the box, and the input `(n,)` that has it.

    Every row is attacked by itself, from the middle of the box and from random inputs of it.
    """
    rng = np.random.default_rng(seed)
    n_rows = len(c.bias)
    low, high = box.lower[:, None], box.upper[:, None]
    best, at = np.inf, box.lower
    rows = np.tile(np.arange(n_rows), RESTARTS)
    x = low + (high - low) * rng.random((len(box.lower), len(rows)))
    x[:, :n_rows] = (low + high) / 2
    for step in range(STEPS + 1):
        values, before, _ = network.pre_activations(x)
        got = c(values)
        least = np.unravel_index(got.argmin(), got.shape)
        if got[least] < best:
            best, at = float(got[least]), x[:, least[1]].copy()
        size = 0.5 * (1 - step / STEPS) + 0.01
        x = np.clip(x - size * (high - low) / 2 * np.sign(gradient(network, c, before, rows)), low, high)
    return best, at


def gradient(network: Network, c: Affine, before: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The gradient `(n, batch)` by the input, of row `rows[b]` for sample b."""
    slopes = {j: np.asarray(_rows(matrix, rows)).T for j, matrix in c.weights.items()}
    for k in range(len(network.layers), 0, -1):
        if k not in slopes:
            continue
        layer, slope, z = network.layers[k - 1], slopes.pop(k), before[k - 1]
        if layer.windows is None:
            on = slope * (z > 0)
        else:
            at = np.take_along_axis(layer.windows[:, :, None], z[layer.windows].argmax(axis=1)[:, None, :], axis=1)
            on = np.zeros_like(z)
            np.add.at(on, (at[:, 0, :], np.arange(z.shape[1])), slope)
        for j, matrix in layer.affine.weights.items():
            part = matrix.T @ on
            slopes[j] = slopes[j] + part if j in slopes else part
    return slopes.get(0, np.zeros((network.n_inputs, len(rows))))


def _rows(matrix: object, rows: np.ndarray) -> np.ndarray:
    found = matrix[rows]  # type: ignore[index]
    dense: np.ndarray = found.toarray() if hasattr(found, "toarray") else found
    return dense
