"""How far two networks can differ anywhere in a box, both on the same input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.certify.attack import least_margin
from edgeprune.certify.crown import crown_bounds, lower_bound
from edgeprune.certify.intervals import Box, affine_interval, interval_bounds
from edgeprune.certify.judging import raised_all
from edgeprune.certify.network import Affine, Network, beside
from edgeprune.errors import InputError


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of any output in a box: at most `bound`; `found` was met, `here` is at the sample."""

    bound: float
    found: float
    here: float


class Pair:
    """Two networks with the same inputs and outputs, side by side."""

    def __init__(self, dense: Network, slim: Network) -> None:
        for what in ("n_inputs", "n_outputs"):
            wanted, got = getattr(dense, what), getattr(slim, what)
            if wanted != got:
                raise InputError(f"--equivalence: expected {what[2:]} as the dense network's {wanted}, got {got}")
        self.both = beside(dense, slim)
        unit = np.eye(dense.n_outputs)
        apart = np.hstack([unit, -unit])
        # What is bounded from below is the difference with either sign.
        self.rows: Affine = self.both.output.rows(np.vstack([apart, -apart]))

    def difference(self, x: np.ndarray, box: Box, method: str, seed: int = 0) -> Difference:
        """Of the outputs around a sample `x` `(n,)`."""
        bounds = interval_bounds(self.both, box) if method == "interval" else crown_bounds(self.both, box)
        lower = affine_interval(self.rows, bounds)[0]
        if method != "interval":
            lower = np.maximum(lower, lower_bound(self.rows, self.both, bounds))
        found, _ = least_margin(self.both, self.rows, box, seed)
        here = float(np.abs(self.rows(self.both.pre_activations(x)[0])).max())
        if method == "sdp":
            lower = raised_all(self.both, self.rows, bounds, lower)
        return Difference(float(-lower.min()), max(-found, here), here)
