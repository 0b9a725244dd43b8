"""Interval bounds: each value by the bounds of those before it, with an outward margin for rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.certify.network import ROUNDING, Affine, Layer, Matrix, Network


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Where an input may lie: `lower` and `upper` `(n,)`, raw."""

    lower: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Of a network in a box: `lower[k]`, `upper[k]` of value k; `before[k]` of the pre-activations of layer k + 1."""

    lower: list[np.ndarray]
    upper: list[np.ndarray]
    before: list[tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(cls, box: Box) -> Bounds:
        """Of the input alone."""
        return cls([box.lower], [box.upper], [])

    def largest(self) -> list[np.ndarray]:
        """The largest absolute value of each element."""
        return [np.maximum(np.abs(low), np.abs(high)) for low, high in zip(self.lower, self.upper, strict=True)]

    def add(self, layer: Layer, low: np.ndarray, high: np.ndarray) -> None:
        """The bounds of a further layer's pre-activations, from which follow those of its value."""
        self.before.append((low, high))
        self.lower.append(layer.of(low))
        self.upper.append(layer.of(high))


def interval_bounds(network: Network, box: Box) -> Bounds:
    """Bounds of all hidden values."""
    bounds = Bounds.of(box)
    for layer in network.layers:
        bounds.add(layer, *affine_interval(layer.affine, bounds))
    return bounds


def affine_interval(affine: Affine, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest of an affine function, widened by what rounding may have taken."""
    low, high = affine.bias.copy(), affine.bias.copy()
    for j, matrix in affine.weights.items():
        positive, negative = _signs(matrix)
        low += positive @ bounds.lower[j] + negative @ bounds.upper[j]
        high += positive @ bounds.upper[j] + negative @ bounds.lower[j]
    margin = ROUNDING * affine.magnitude(bounds.largest())
    return low - margin, high + margin


def _signs(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """The positive and the negative part."""
    positive = (matrix + abs(matrix)) * 0.5
    return positive, matrix - positive
