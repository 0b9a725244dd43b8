"""By which criterion units go, where nobody says: the one whose cut has lost least before anything is trained.

No criterion is the best for every network. What a cut has lost once what is left has taken over, without training,
tells which one is for this network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.search.candidate import Budgets, Found
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.probing import Prober
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy

CHOICES = ("taylor", "l2")  # the first where nothing can be told
_HALF = 0.5  # of the MACs: how far down the criteria are compared where no share is stated
_NEARER = 0.8  # where widths do not go down so far


@dataclass(frozen=True, slots=True, eq=False)
class BestCriterion:
    """A strategy that goes as `inner` does, by the criterion whose cut loses least, which it finds out first."""

    inner: Strategy
    prober: Prober

    @property
    def name(self) -> str:
        """What it is called."""
        return self.inner.name

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Cut the dense network once by each criterion, go by the best of them, and say which one that is.

        Raises:
            BudgetError: as `inner`.
        """
        step.progress.stage("compare what cuts lose by each criterion")
        criterion, losses = CHOICES[0], dict[str, float]()
        for share in (stated_share(budgets) or _HALF, _NEARER):
            try:
                losses = self._losses(step, share)
            except BudgetError:
                continue
            criterion = min(losses, key=losses.__getitem__)
            break
        step.cutter.score_by(criterion)
        step.assume(f"--criterion {criterion}{_compared(losses, criterion, share)}")
        return self.inner.search(step, budgets)

    def _losses(self, step: Step, share: float) -> dict[str, float]:
        """The loss after a cut to this share of the MACs by each criterion; infinite where it is none."""
        losses: dict[str, float] = {}
        for number, criterion in enumerate(CHOICES, 1):
            loss = _loss(step.cutter, self.prober, criterion, share)
            losses[criterion] = loss if math.isfinite(loss) else math.inf
            step.progress.advance(number, len(CHOICES), f"{criterion}: loss {loss:.3f}")
        return losses


def stated_share(budgets: Budgets) -> float | None:
    """The least share of the dense network's cost that is asked for; None where none is stated."""
    limit = budgets.max_latency
    stated = (budgets.keep_macs, None if limit is None else limit.ratio)
    return min((share for share in stated if share is not None), default=None)


def _loss(cutter: Cutter, prober: Prober, criterion: str, share: float) -> float:
    """What the dense network's loss is after such a cut, once what is left has taken over."""
    cutter.score_by(criterion)
    slim, settled = cutter.tried(cutter.planned(cutter.dense, Shares(macs=share)))
    return prober.probed(slim.own_module(), settled)


def _compared(losses: Mapping[str, float], chosen: str, share: float) -> str:
    """What the choice was made by; empty where there was none."""
    if not losses:
        return ""
    others = ", ".join(f"{loss:.3f} by {name}" for name, loss in losses.items() if name != chosen)
    return f" (untrained, at {share:.0%} of the MACs, the loss is {losses[chosen]:.3f}; {others})"
