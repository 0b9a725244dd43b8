"""The largest eigenvalue of a symmetric matrix: Lanczos (scipy's eigsh) where it is large, LAPACK where it is small.

What Lanczos finds is never above the largest eigenvalue, so that nothing is proved by it: see `proof`.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

SMALL = 400


def largest_eigenpair(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest eigenvalue of `(n, n)`, and a unit vector `(n,)`."""
    n = len(matrix)
    if n > SMALL:
        shift = float(np.abs(matrix).max())  # the tolerance is relative to the eigenvalue, which may be next to 0
        matrix = matrix + shift * np.eye(n)
        try:
            values, vectors = eigsh(matrix, k=1, which="LA", tol=1e-6, v0=np.ones(n))
            return float(values[-1]) - shift, vectors[:, -1]
        except ArpackNoConvergence:
            matrix = matrix - shift * np.eye(n)  # LAPACK does not iterate so
    values, vectors = eigh(matrix, subset_by_index=[n - 1, n - 1], check_finite=False)
    return float(values[-1]), vectors[:, -1]
