"""The dual of the semidefinite relaxation, by projected subgradient steps from CROWN's multipliers on.

Dathathri et al., Enabling certification of verification-agnostic networks via memory-efficient semidefinite programming
(arXiv 2010.11645), equation (5): with `M` the matrix of the Lagrangian as a form of `(1, w)`, every `w` in `[-1, 1]`,
and any `kappa`, not negative but for its first, for which `diag(kappa) - M` has no negative eigenvalue,

    max_w L(w) <= L(0) + sum(kappa)

holds. What `kappa` lacks is made up for by a multiple of `sizes`, found as an eigenvalue, so that every step has a
bound. The input's block of the matrix is diagonal and is eliminated; the steps are Adam's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.certify.lagrangian import Blocks, Lagrangian, Multipliers, from_crown
from edgeprune.certify.lanczos import largest_eigenpair

STEPS = 1000
_RATE, _LAST_RATE = 0.06, 1e-4
_MOMENTA = 0.9, 0.99
_LEAST_SHARE = 1e-3
_ENOUGH = 1e-3  # of the bound that is asked for is left to the proof's margins


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Multipliers, `kappa` of the input and of (1, hidden), what lacks of the latter in `sizes`, and the bound."""

    m: Multipliers
    on_input: np.ndarray
    on_hidden: np.ndarray
    bound: float


class Dual:
    """The dual of one margin at the multipliers that the steps have come to."""

    def __init__(self, lagrangian: Lagrangian) -> None:
        self.of, self._n = lagrangian, len(lagrangian.layers)
        start = from_crown(lagrangian)
        on_input = np.abs(lagrangian.linear(start)[0]) / 2
        total = float(on_input.sum()) + 1e-9
        arriving = [a + b + t for a, b, t in zip(start.a, start.b, start.t, strict=True)]
        some = [x + x.mean() + 1e-9 for x in arriving]
        rads = lagrangian.rad[1:]
        self.sizes = _sizes(total, [x * r / 2 for x, r in zip(arriving, rads, strict=True)])
        self._least = np.full(len(on_input), _LEAST_SHARE * total / len(on_input))
        self.values: Blocks = [np.maximum(on_input, self._least), np.zeros(len(self.sizes))]
        self.values[1][0] = total
        self.values += [x for kind in start.all() for x in kind]
        even = np.maximum(on_input, total / len(on_input))
        bent = [0.3 * x / np.maximum(r, 1e-2 * r.max() + 1e-9) for x, r in zip(some, rads, strict=True)]
        # In these units all steps are of a size.
        self.scales = [0.3 * even, 0.3 * self.sizes, *some * 3, *bent]
        # Of a max pooling `a` and `q` mean nothing; a ReLU whose side is known needs no `q`.
        self._moves = [0.0 if layer.windows is not None else 1.0 for layer in lagrangian.layers]
        self._held = [m * (line.high != line.low) for m, line in zip(self._moves, lagrangian.lines, strict=True)]
        self._constraints = lagrangian.constraints()

    def point(self) -> tuple[Point, Blocks]:
        """Where the steps have come to, with its bound, and a subgradient."""
        n = self._n
        kinds = [self.values[2 + i * n : 2 + (i + 1) * n] for i in range(4)]
        m, (on_input, on_hidden) = Multipliers(*kinds), self.values[:2]
        hidden, across = self.of.matrix(m)
        rows = np.flatnonzero(across.any(axis=1))
        shared = across[rows] / np.sqrt(on_input)
        hidden[np.ix_(rows, rows)] += shared @ shared.T
        hidden[np.diag_indices(len(hidden))] -= on_hidden
        root = 1 / np.sqrt(self.sizes)
        value, vector = largest_eigenpair(hidden * root[:, None] * root)
        lack = max(0.0, value)
        raised = on_hidden + lack * self.sizes
        bound = self.of.constant(m) + float(on_input.sum() + raised.sum())
        return Point(m, on_input, raised, bound), self._subgradient(vector * root, across, lack > 0)

    def _subgradient(self, u: np.ndarray, across: np.ndarray, is_lacking: bool) -> Blocks:
        weight = float(self.sizes.sum()) if is_lacking else 0.0
        on_input = (across.T @ u) / self.values[0]
        edges = np.cumsum([1, *(len(r) for r in self.of.rad[1:])])[:-1]
        w = [on_input, *np.split(u, edges)[1:]]
        curved = self.of.curvature(u[:1], [x[:, None] for x in w])
        found = [1 - weight * on_input**2, 1 - weight * u**2]
        for held, bent in zip(self._constraints, curved, strict=True):
            found += [h + weight * c for h, c in zip(held, bent, strict=True)]
        for k in range(self._n):
            found[2 + k] = found[2 + k] * self._moves[k]
            found[2 + 3 * self._n + k] = found[2 + 3 * self._n + k] * self._held[k]
        return found

    def step(self, directions: Blocks) -> None:
        """Go against directions, in units of the scales, and back to where all are allowed."""
        for i, (direction, scale) in enumerate(zip(directions, self.scales, strict=True)):
            moved = self.values[i] - scale * direction
            self.values[i] = np.maximum(moved, self._least if i == 0 else 0.0)
            if i == 1:
                self.values[1][0] = moved[0]


def _sizes(total: float, hidden: Blocks) -> np.ndarray:
    """How much of what `kappa` lacks is put on each of (1, hidden): what CROWN's multipliers say of it."""
    floor = 0.5 * total / max(1, sum(map(len, hidden)))
    return np.concatenate([[total], *(np.maximum(x, floor) for x in hidden)])


def dual_bound(lagrangian: Lagrangian, steps: int = STEPS, at_most: float = -np.inf) -> Point:
    """The point with the smallest bound that was found; stops where that is below `at_most`."""
    dual = Dual(lagrangian)
    best, gradient = dual.point()
    first = [np.zeros_like(x) for x in gradient]
    second = [np.zeros_like(x) for x in gradient]
    one, two = _MOMENTA
    for count in range(1, steps + 1):
        if best.bound < at_most - _ENOUGH:
            break
        rate = _RATE * (0.5 + 0.5 * np.cos(np.pi * (count - 1) / steps)) + _LAST_RATE
        directions = []
        for i, scale in enumerate(dual.scales):
            g = gradient[i] * scale
            first[i] = one * first[i] + (1 - one) * g
            second[i] = two * second[i] + (1 - two) * g * g
            spread = np.sqrt(second[i] / (1 - two**count)) + 1e-12
            directions.append(rate * first[i] / (1 - one**count) / spread)
        dual.step(directions)
        point, gradient = dual.point()
        best = point if point.bound < best.bound else best
    return best
