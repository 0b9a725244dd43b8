"""The proof of a dual bound: all eigenvalues of the whole matrix by LAPACK, and outward margins for all rounding."""

from __future__ import annotations

import numpy as np

from edgeprune.certify.intervals import Bounds
from edgeprune.certify.lagrangian import Lagrangian
from edgeprune.certify.network import ROUNDING, Affine
from edgeprune.certify.sdp import Point
from edgeprune.errors import InternalError

MOST_VALUES = 4096  # input and hidden values together: a matrix of 134 MB
_EIGENVALUES = 64 * 2.0**-52  # times the size and the norm: what LAPACK's symmetric solvers may be wrong by


def proved_bound(lagrangian: Lagrangian, point: Point, bounds: Bounds, margin: Affine) -> float:
    """What the margin is at least, whatever the point is: its multipliers are made such as they must be."""
    _check_signs(lagrangian, point)
    kappa = np.concatenate([point.on_hidden, point.on_input])
    kappa[1:] = np.maximum(kappa[1:], 0.0)
    hidden, across = lagrangian.matrix(point.m)
    n, h = len(kappa), len(hidden)
    matrix = np.zeros((n, n))
    matrix[:h, :h] = hidden
    matrix[:h, h:], matrix[h:, :h] = across, across.T
    sizes = np.maximum(kappa, kappa.max() * 1e-6 + 1e-12)
    root = 1 / np.sqrt(sizes)
    scaled = (np.diag(kappa) - matrix) * root[:, None] * root
    least = float(np.linalg.eigvalsh(scaled)[0]) - _EIGENVALUES * n * float(np.linalg.norm(scaled))
    raised = float(kappa.sum()) + max(0.0, -least) * float(sizes.sum())
    at_most = lagrangian.constant(point.m) + raised
    return -(at_most + ROUNDING * (_terms(lagrangian, point, bounds, margin) + abs(raised) + float(sizes.sum())))


def _check_signs(lagrangian: Lagrangian, point: Point) -> None:
    """Raise InternalError unless every multiplier is of a sign, and of a layer, for which it is one."""
    negative = any((x < 0).any() for kind in (point.m.a, point.m.b, point.m.t) for x in kind)
    of_pools = [k for k, layer in enumerate(lagrangian.layers) if layer.windows is not None]
    strange = any(kind[k].any() for kind in (point.m.a, point.m.q) for k in of_pools)
    if negative or strange:
        raise InternalError(
            "certify: the dual came to multipliers that prove nothing: expected a, b and t of at least 0"
        )


def _terms(lagrangian: Lagrangian, point: Point, bounds: Bounds, margin: Affine) -> float:
    """The sum of absolute terms of the Lagrangian, wherever the values lie."""
    largest = bounds.largest()
    total = float(margin.magnitude(largest)[0])
    for k, (line, layer) in enumerate(zip(lagrangian.lines, lagrangian.layers, strict=True)):
        z, v = layer.affine.magnitude(largest), largest[k + 1]
        gap = v + z[line.at]
        total += float(point.m.a[k] @ v + point.m.b[k] @ gap + np.abs(point.m.q[k]) @ (v * gap))
        total += float(point.m.t[k] @ (line.high * z[line.top] + np.abs(line.above) + v))
    return total
