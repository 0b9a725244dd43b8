"""One sample's verdict: the least that its margins can be in a box, from below by proof and from above by an attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.certify.attack import least_margin
from edgeprune.certify.crown import crown_bounds, lower_bound
from edgeprune.certify.intervals import Bounds, Box, affine_interval, interval_bounds
from edgeprune.certify.lagrangian import Lagrangian
from edgeprune.certify.network import Affine, Network
from edgeprune.certify.proof import MOST_VALUES, proved_bound
from edgeprune.certify.sdp import STEPS, dual_bound
from edgeprune.errors import InputError

METHODS = ("interval", "crown", "sdp")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The least margin in the box is at least `lower`; `found` is the least that was met, None where not sought."""

    lower: float
    found: float | None

    @property
    def is_verified(self) -> bool:
        """Whether no input of the box changes the decision."""
        return self.lower > 0

    @property
    def is_attacked(self) -> bool:
        """Whether an input of the box is known that does."""
        return self.found is not None and self.found <= 0


def margins_of(network: Network, decision: int) -> Affine:
    """The output of a class less that of each other one."""
    others = [j for j in range(network.n_outputs) if j != decision]
    c = np.zeros((len(others), network.n_outputs))
    c[:, decision] = 1.0
    c[np.arange(len(others)), others] = -1.0
    return network.output.rows(c)


def judge(network: Network, margins: Affine, box: Box, method: str, seed: int = 0, steps: int = STEPS) -> Verdict:
    """Prove that all margins stay above 0, or find an input where one does not.

    What is proved without it is not attacked, and what is attacked is not proved further.
    """
    bounds = interval_bounds(network, box) if method == "interval" else crown_bounds(network, box)
    lower = affine_interval(margins, bounds)[0]
    if method != "interval":
        lower = np.maximum(lower, lower_bound(margins, network, bounds))
    if lower.min() > 0:
        return Verdict(float(lower.min()), None)
    open_rows = margins.rows(np.eye(len(lower))[lower <= 0])
    found, _ = least_margin(network, open_rows, box, seed)
    if found > 0 and method == "sdp":
        lower = raised(network, margins, bounds, lower, steps)
    return Verdict(float(lower.min()), found)


def raised(network: Network, margins: Affine, bounds: Bounds, lower: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Bounds with those that are not above 0 raised by the dual, the least first, until one stays below."""
    lower = lower.copy()
    for row in np.argsort(lower, kind="stable"):
        if lower[row] > 0:
            continue
        lower[row] = max(lower[row], _by_dual(network, margins, bounds, int(row), steps, 0.0))
        if not lower[row] > 0:
            break
    return lower


def raised_all(network: Network, margins: Affine, bounds: Bounds, lower: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Bounds raised by the dual, the least first, until what is the least has been raised."""
    lower = lower.copy()
    done = np.zeros(len(lower), dtype=bool)
    while not done[row := int(lower.argmin())]:
        lower[row] = max(lower[row], _by_dual(network, margins, bounds, row, steps, np.inf))
        done[row] = True
    return lower


def _by_dual(network: Network, margins: Affine, bounds: Bounds, row: int, steps: int, enough: float) -> float:
    """What one margin is at least; the steps stop where it is above `enough`."""
    one = margins.rows(np.eye(len(margins.bias))[[row]])
    lagrangian = Lagrangian(network, bounds, one)
    return proved_bound(lagrangian, dual_bound(lagrangian, steps, at_most=-enough), bounds, one)


def check_method(network: Network, method: str) -> None:
    """Raise InputError where the method is not made for a network of this size."""
    n = network.n_inputs + sum(layer.size for layer in network.layers)
    if method == "sdp" and n > MOST_VALUES:
        raise InputError(
            f"--method sdp: expected at most {MOST_VALUES:,} input and hidden values, got {n:,}; crown takes it"
        )
