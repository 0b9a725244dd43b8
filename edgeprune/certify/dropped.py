"""Removed inputs: the box in which they lie anywhere, while those that are kept are as in a sample."""

from __future__ import annotations

import numpy as np

from edgeprune.certify.intervals import Box
from edgeprune.certify.ranges import Range
from edgeprune.records import InputFeatures


def removed(features: InputFeatures, shape: tuple[int, ...]) -> np.ndarray:
    """Which elements of a flat input `(n,)` a plan removes: bool."""
    gone = np.ones(shape, dtype=bool)
    if features.dim is None:
        gone.reshape(-1)[list(features.keep)] = False
    else:
        gone.swapaxes(0, features.dim - 1)[list(features.keep)] = False
    return gone.ravel()


def dropped_box(x: np.ndarray, gone: np.ndarray, valid: Range) -> Box:
    """Everything that differs from `x` `(n,)` in removed elements alone."""
    whole = valid.box(x, np.inf)
    return Box(np.where(gone, whole.lower, x), np.where(gone, whole.upper, x))
