"""A network as bounds see it: hidden values, each the largest of a few affine functions of the values before it.

Value 0 is the input, flat and in the units of the data. Value `k` is what layer `k` makes: of a ReLU the larger of each
pre-activation and 0, of a max pooling the largest of a window. Everything between is affine and held as matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

Matrix = Any  # (m, n) float64: np.ndarray, or a sparse array of scipy where most of it is zero
# Of the sum of absolute terms: more than float64 loses in a sum of 8,000 terms, over a few operators in a row.
ROUNDING = 2.0**-40
_SPARSE = 0.2


def compact(dense: np.ndarray) -> Matrix:
    """A matrix as it takes less room."""
    return sp.csr_array(dense) if np.count_nonzero(dense) < _SPARSE * dense.size else np.ascontiguousarray(dense)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`sum_j weights[j] @ v_j + bias` of values `v_j` `(n_j,)`; gives `(m,)`."""

    weights: Mapping[int, Matrix]
    bias: np.ndarray

    def __call__(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Of values `(n_j,)` or `(n_j, batch)`."""
        bias = self.bias if values[0].ndim == 1 else self.bias[:, None]
        total: np.ndarray = sum((matrix @ values[j] for j, matrix in self.weights.items()), bias)
        return total

    def rows(self, c: np.ndarray) -> Affine:
        """`c @` it: `c` is `(k, m)`."""
        return Affine({j: c @ matrix for j, matrix in self.weights.items()}, c @ self.bias)

    def magnitude(self, largest: Sequence[np.ndarray]) -> np.ndarray:
        """The sum of absolute terms `(m,)` of values that are at most `largest`: what rounding is a share of."""
        total: np.ndarray = sum((abs(matrix) @ largest[j] for j, matrix in self.weights.items()), np.abs(self.bias))
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One hidden value: of pre-activations `z` its elements are `max(z, 0)`, or `max(z[windows], axis=1)`.

    `windows` int `(n, k)` index `z`; where a window has less than `k` elements one of them stands again. `name` is that
    of the operator.
    """

    affine: Affine
    windows: np.ndarray | None
    name: str

    @property
    def size(self) -> int:
        """How many elements it has."""
        return len(self.affine.bias) if self.windows is None else len(self.windows)

    def of(self, z: np.ndarray) -> np.ndarray:
        """The value of pre-activations `(m,)` or `(m, batch)`."""
        value: np.ndarray = np.maximum(z, 0.0) if self.windows is None else z[self.windows].max(axis=1)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Layers in the order of their values, and the output as an affine function of all of them."""

    n_inputs: int
    layers: tuple[Layer, ...]
    output: Affine

    @property
    def n_outputs(self) -> int:
        """The width of the output."""
        return len(self.output.bias)

    def pre_activations(self, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Of inputs `(n,)` or `(n, batch)`: the values, the pre-activations of each layer, and the output."""
        values, before = [x], []
        for layer in self.layers:
            before.append(layer.affine(values))
            values.append(layer.of(before[-1]))
        return values, before, self.output(values)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The output `(m,)` or `(m, batch)`."""
        return self.pre_activations(x)[2]


def beside(one: Network, other: Network) -> Network:
    """Both networks on the same input, as one; the output is that of the first and below it that of the second."""
    shift = len(one.layers)

    def moved(affine: Affine) -> Affine:
        return Affine({j + shift if j else 0: matrix for j, matrix in affine.weights.items()}, affine.bias)

    layers = [Layer(moved(layer.affine), layer.windows, layer.name) for layer in other.layers]
    first = {j: _padded(matrix, 0, other.n_outputs) for j, matrix in one.output.weights.items()}
    second = moved(other.output)
    for j, matrix in second.weights.items():
        below = _padded(matrix, one.n_outputs, 0)
        first[j] = first[j] + below if j in first else below
    output = Affine(first, np.concatenate([one.output.bias, second.bias]))
    return Network(one.n_inputs, (*one.layers, *layers), output)


def _padded(matrix: Matrix, above: int, below: int) -> np.ndarray:
    dense = matrix.toarray() if sp.issparse(matrix) else matrix
    return np.pad(dense, ((above, below), (0, 0)))
