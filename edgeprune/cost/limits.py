"""What a network may cost: limits of its costs, and what a unit is priced by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.cost.models import CostModel
from edgeprune.cost.widths import Alignment

MACS, LATENCY, BYTES, PARAMETERS = "the MACs", "the latency", "the bytes", "the parameters"
ACTIVATIONS = "the live activations"
_NAMES = {
    MACS: ("macs", "MACs"),
    LATENCY: ("latency", "ms"),
    BYTES: ("size", "bytes"),
    PARAMETERS: ("params", "parameters"),
    ACTIVATIONS: ("ram", "bytes"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """A cost and the largest share of it that may be left; `what` it is, e.g. "the MACs"."""

    what: str
    model: CostModel
    share: float

    @property
    def name(self) -> str:
        """What the planner's shares call it: macs, latency, size or ram."""
        return _NAMES[self.what][0]

    @property
    def unit(self) -> str:
        """What it is counted in."""
        return _NAMES[self.what][1]

    @property
    def most(self) -> float:
        """How much may be left."""
        return self.share * self.model.total

    def excess(self, left: float) -> float:
        """How much of it is over the limit."""
        return left - self.most

    def most_at(self, done: float) -> float:
        """How much may be left when this share of the way down is done, in [0, 1]."""
        return (1 - (1 - self.share) * done) * self.model.total


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """The limits that a network is trained down to; with a `saved` cost, units are priced by that, else by the limits.

    `alignment` says which widths layers may have.
    """

    limits: tuple[Limit, ...]
    saved: CostModel | None = None
    alignment: Alignment = Alignment(1)

    def is_held(self, keep: np.ndarray, done: float) -> bool:
        """Whether no cost is over what it may be when this share of the way is done; `keep` is bool by label."""
        return all(limit.model.left(keep) <= limit.most_at(done) * (1 + _ROUNDING) for limit in self.limits)

    def prices(self, keep: np.ndarray, done: float) -> np.ndarray:
        """What each unit costs `(n_labels,)`, as a share: of what units are priced by, or of all that is over."""
        if self.saved is not None:
            return self.saved.prices(keep) / self.saved.total
        over = [limit for limit in self.limits if limit.model.left(keep) > limit.most_at(done)] or self.limits
        return np.asarray(sum(limit.model.prices(keep) / limit.model.total for limit in over))


_ROUNDING = 1e-9
