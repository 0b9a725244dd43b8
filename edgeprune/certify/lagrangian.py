"""The Lagrangian of a margin over the box: a quadratic function whose largest value bounds the margin from below.

Of values `v_k` with pre-activations `z_k` and multipliers `a, b, t >= 0` and `q`,

    L(v) = -margin(v) + sum_k a_k v_k + b_k (v_k - z_k) + t_k (high_k z_k + above_k - v_k) - q_k v_k (v_k - z_k)

is at least `-margin` at whatever the network computes: the first three brackets are not negative there (`t` is the line
above of CROWN) and the last is 0. Written in `w` with `v = mid + rad w`, every `w` lies in `[-1, 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.certify.crown import Lines, all_lines
from edgeprune.certify.intervals import Bounds
from edgeprune.certify.network import Affine, Matrix, Network

Blocks = list[np.ndarray]  # one array a value, the input's first


@dataclass(slots=True, eq=False)
class Multipliers:
    """Of each layer; of a max pooling `a` and `q` stay 0."""

    a: Blocks
    b: Blocks
    t: Blocks
    q: Blocks

    def all(self) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """The four kinds."""
        return self.a, self.b, self.t, self.q


class Lagrangian:
    """The quadratic function of one margin; everything linear in the multipliers is computed from them when asked."""

    def __init__(self, network: Network, bounds: Bounds, margin: Affine) -> None:
        """`margin` has one row."""
        self.layers, self.margin = network.layers, margin
        self.lines: list[Lines] = all_lines(network, bounds)
        self.mid = [(low + high) / 2 for low, high in zip(bounds.lower, bounds.upper, strict=True)]
        self.rad = [(high - low) / 2 for low, high in zip(bounds.lower, bounds.upper, strict=True)]
        self.z_mid = [layer.affine(self.mid) for layer in self.layers]
        self.c = [np.zeros_like(mid) for mid in self.mid]
        for j, matrix in margin.weights.items():
            dense = matrix.toarray() if hasattr(matrix, "toarray") else matrix
            self.c[j] = np.asarray(dense).ravel()

    def spread(self, d: Blocks) -> Blocks:
        """What changes `d` of the values make of the pre-activations of each layer."""
        return [sum(m @ d[j] for j, m in layer.affine.weights.items()) for layer in self.layers]

    def constant(self, m: Multipliers) -> float:
        """L at `w = 0`."""
        total = -float(self.margin(self.mid)[0])
        for held, blocks in zip(self.constraints(), m.all(), strict=True):
            total += sum(float(h @ x) for h, x in zip(held, blocks, strict=True))
        return total

    def constraints(self) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """Each constraint at `w = 0`."""
        a, b, t, q = [], [], [], []
        for line, v, z in zip(self.lines, self.mid[1:], self.z_mid, strict=True):
            a.append(v)
            b.append(v - z[line.at])
            t.append(line.high * z[line.top] + line.above - v)
            q.append(-v * (v - z[line.at]))
        return a, b, t, q

    def curvature(self, u0: np.ndarray, w: Blocks) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """Each constraint without its constant as a quadratic form of `(u0, w)`, summed over the columns of both.

        That form is `u0` linear(w) + quadratic(w); `u0` is `(r,)` and each of `w` `(n, r)`.
        """
        d = [r[:, None] * x for r, x in zip(self.rad, w, strict=True)]
        a, b, t, q = [], [], [], []
        for line, v, z, dv, dz in zip(self.lines, self.mid[1:], self.z_mid, d[1:], self.spread(d), strict=True):
            own, pre = dv @ u0, dz @ u0
            gap = own - pre[line.at]
            a.append(own)
            b.append(gap)
            t.append(line.high * pre[line.top] - own)
            q.append(-(own * (v - z[line.at]) + v * gap) - (dv * (dv - dz[line.at])).sum(axis=1))
        return a, b, t, q

    def linear(self, m: Multipliers) -> Blocks:
        """The gradient by `w` at `w = 0`."""
        g = [-c for c in self.c]
        for k, (line, layer) in enumerate(zip(self.lines, self.layers, strict=True)):
            v, z, q = self.mid[k + 1], self.z_mid[k], m.q[k]
            g[k + 1] = g[k + 1] + m.a[k] + m.b[k] - m.t[k] - q * (2 * v - z[line.at])
            on_z = np.bincount(line.at, q * v - m.b[k], len(z)) + np.bincount(line.top, m.t[k] * line.high, len(z))
            for j, matrix in layer.affine.weights.items():
                g[j] = g[j] + matrix.T @ on_z
        return [x * r for x, r in zip(g, self.rad, strict=True)]

    def matrix(self, m: Multipliers) -> tuple[np.ndarray, np.ndarray]:
        """L without its constant as a form of `(1, hidden w)` and the input's w, which has no squares of its own.

        Returns `hidden` `(1 + h, 1 + h)`, symmetric, and `across` `(1 + h, n)`: the form is
        `u @ hidden @ u + 2 u @ across @ w_0`.
        """
        gradient = self.linear(m)
        edges = np.cumsum([1, *(len(rad) for rad in self.rad[1:])])
        hidden = np.zeros((edges[-1], edges[-1]))
        across = np.zeros((edges[-1], len(self.rad[0])))
        across[0] = gradient[0] / 2
        hidden[0, 1:] = hidden[1:, 0] = np.concatenate([np.zeros(0), *gradient[1:]]) / 2
        for k, (line, layer) in enumerate(zip(self.lines, self.layers, strict=True)):
            own = slice(edges[k], edges[k + 1])
            hidden[own, own] -= np.diag(m.q[k] * self.rad[k + 1] ** 2)
            for j, matrix in layer.affine.weights.items():
                part = _scaled(matrix[line.at], 0.5 * m.q[k] * self.rad[k + 1], self.rad[j])
                if j == 0:
                    across[own] += part
                else:
                    other = slice(edges[j - 1], edges[j])
                    hidden[own, other] += part
                    hidden[other, own] += part.T
        return hidden, across


def _scaled(matrix: Matrix, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    dense = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    scaled: np.ndarray = dense * rows[:, None] * columns
    return scaled


def from_crown(lagrangian: Lagrangian) -> Multipliers:
    """The multipliers with which the bound is CROWN's: L is linear then, in the input alone."""
    layers = lagrangian.layers
    on = [c.copy() for c in lagrangian.c]
    n = len(layers)
    a: Sequence[np.ndarray]
    a, b, t, q = ([np.zeros(layer.size) for layer in layers] for _ in range(4))
    for k in range(n - 1, -1, -1):
        line, layer, c = lagrangian.lines[k], layers[k], on[k + 1]
        positive, negative = np.maximum(c, 0.0), np.minimum(c, 0.0)
        b[k] = positive * line.low
        a[k] = positive - b[k]
        t[k] = -negative
        on_z = np.bincount(line.at, b[k], len(layer.affine.bias))
        on_z = on_z + np.bincount(line.top, negative * line.high, len(layer.affine.bias))
        for j, matrix in layer.affine.weights.items():
            on[j] = on[j] + matrix.T @ on_z
    return Multipliers(list(a), b, t, q)
