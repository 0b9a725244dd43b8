"""CROWN: bounds by going backwards with one line below and one above each nonlinearity.

Zhang, Weng, Chen, Hsieh and Daniel, Efficient Neural Network Robustness Certification with General Activation
Functions (arXiv 1811.00866), with the slope below a ReLU that leaves the smaller area.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.certify.intervals import Bounds, Box, affine_interval
from edgeprune.certify.network import ROUNDING, Affine, Layer, Network


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """A layer's value `v` between lines over its pre-activations `z`: `low * z[at] <= v <= high * z[top] + above`.

    `at` and `top` index `z`, one element each of the value.
    """

    low: np.ndarray
    at: np.ndarray
    high: np.ndarray
    top: np.ndarray
    above: np.ndarray


def crown_bounds(network: Network, box: Box) -> Bounds:
    """Bounds of all hidden values: by intervals, and where these leave open which side of 0 it is, by CROWN."""
    bounds = Bounds.of(box)
    lines: list[Lines] = []
    for layer in network.layers:
        low, high = affine_interval(layer.affine, bounds)
        open_ = np.flatnonzero((low < 0) & (high > 0)) if layer.windows is None else np.arange(len(low))
        if lines and len(open_):
            rows = np.zeros((len(open_), len(low)))
            rows[np.arange(len(open_)), open_] = 1.0
            some = layer.affine.rows(rows)
            low[open_] = np.maximum(low[open_], lower_bound(some, network, bounds, lines))
            high[open_] = np.minimum(high[open_], -lower_bound(some.rows(-np.eye(len(open_))), network, bounds, lines))
        bounds.add(layer, low, high)
        lines.append(lines_of(layer, low, high))
    return bounds


def lines_of(layer: Layer, low: np.ndarray, high: np.ndarray) -> Lines:
    """The lines between which a layer's value lies, where its pre-activations lie in `[low, high]`."""
    if layer.windows is None:
        every = np.arange(len(low))
        spread = np.where(high > low, high - low, 1.0)
        slope = np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / spread))
        below = np.where(low >= 0, 1.0, np.where(high > -low, 1.0, 0.0)) * (high > 0)
        return Lines(below, every, slope, every, np.where((low < 0) & (high > 0), -slope * low, 0.0))
    windows = layer.windows
    at = windows[np.arange(len(windows)), low[windows].argmax(axis=1)]
    others = np.where(windows == at[:, None], -np.inf, high[windows]).max(axis=1)
    decided = low[at] >= others
    largest = high[windows].max(axis=1)
    return Lines(np.ones(len(at)), at, decided.astype(float), at, np.where(decided, 0.0, largest))


def lower_bound(affine: Affine, network: Network, bounds: Bounds, lines: list[Lines] | None = None) -> np.ndarray:
    """The least `(m,)` that an affine function of the values bounded so far can be in the box."""
    every = lines if lines is not None else all_lines(network, bounds)
    largest = bounds.largest()
    c = {j: np.atleast_2d(_dense(matrix)) for j, matrix in affine.weights.items()}
    total = affine.bias - ROUNDING * affine.magnitude(largest)
    for k in range(len(bounds.before), 0, -1):
        if k not in c:
            continue
        layer, line, on = network.layers[k - 1], every[k - 1], c.pop(k)
        negative = np.minimum(on, 0.0)
        below, above = (on - negative) * line.low, negative * line.high
        z = _on_pre_activations(layer, line, below, above)
        total = total + negative @ line.above + z @ layer.affine.bias
        for j, matrix in layer.affine.weights.items():
            part = z @ matrix
            c[j] = c[j] + part if j in c else part
        size = layer.affine.magnitude(largest)
        slack = below @ size[line.at] - above @ size[line.top] - negative @ np.abs(line.above)
        total = total - ROUNDING * slack
    if 0 in c:
        on = c[0]
        total = total + np.maximum(on, 0.0) @ bounds.lower[0] + np.minimum(on, 0.0) @ bounds.upper[0]
        total = total - ROUNDING * (np.abs(on) @ largest[0])
    return total


def all_lines(network: Network, bounds: Bounds) -> list[Lines]:
    """The lines of every layer whose pre-activations are bounded."""
    return [lines_of(layer, *before) for layer, before in zip(network.layers, bounds.before, strict=False)]


def _on_pre_activations(layer: Layer, line: Lines, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Coefficients of the lines `(m, n)` as those of the pre-activations."""
    if layer.windows is None:
        return below + above
    z = np.zeros((len(below), len(layer.affine.bias)))
    np.add.at(z.T, line.at, below.T)
    np.add.at(z.T, line.top, above.T)
    return z


def _dense(matrix: object) -> np.ndarray:
    dense: np.ndarray = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    return dense
