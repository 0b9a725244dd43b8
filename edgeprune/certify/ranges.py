"""The range of raw inputs: what a box around a sample is clipped to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgeprune.certify.intervals import Box
from edgeprune.data import batches
from edgeprune.data.inputs import first_of
from edgeprune.errors import InputError
from edgeprune.records import DataSource

_MOST_OF_A_BYTE = 255


@dataclass(frozen=True, slots=True, eq=False)
class Range:
    """The least and the largest of each element of a flat input `(n,)`; `words` say where they are from."""

    lower: np.ndarray
    upper: np.ndarray
    words: str

    def box(self, x: np.ndarray, eps: float) -> Box:
        """All inputs within `eps` of `x` and in range; `x` itself counts as in range."""
        lower, upper = np.minimum(self.lower, x), np.maximum(self.upper, x)
        return Box(np.maximum(x - eps, lower), np.minimum(x + eps, upper))


def valid_range(data: DataSource, asked: tuple[float, float] | None = None) -> Range:
    """The range that is asked for; else that of scaled bytes; else what the train split holds.

    Images have one range for all pixels, columns of a table one each.
    """
    n = int(np.prod(data.input_shape))
    if asked is not None:
        return Range(np.full(n, asked[0]), np.full(n, asked[1]), f"{asked[0]:g} to {asked[1]:g}, as asked")
    if data.byte_scale is not None and data.byte_scale != 1:
        high = _MOST_OF_A_BYTE * data.byte_scale
        return Range(np.zeros(n), np.full(n, high), f"0 to {high:g}, all that a byte can be")
    low, high_seen = _measured(data)
    if len(data.input_shape) > 1:
        low, high_seen = np.full(n, low.min()), np.full(n, high_seen.max())
        return Range(low, high_seen, f"{low[0]:g} to {high_seen[0]:g}, as seen in the train split")
    return Range(low, high_seen, "each column's, as seen in the train split")


def _measured(data: DataSource) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(np.inf), np.array(-np.inf)
    for inputs, _ in batches(data.train, 1024):
        x: Tensor = first_of(inputs)
        flat = x.flatten(1).double().numpy()
        low, high = np.minimum(low, flat.min(0)), np.maximum(high, flat.max(0))
    return low, high


def parse_range(text: str) -> tuple[float, float]:
    """The numbers of `LOW:HIGH`."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low, high = 0.0, 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise InputError(f"--range: expected LOW:HIGH, such as 0:1, got {text}")
    return low, high
