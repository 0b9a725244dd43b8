"""By which criterion units go, where nobody says: in each cut by the one that loses less before anything is trained.

No criterion is the best for every network. What a cut has lost once what is left has taken over, without training,
tells which one is for this network as it is now.
"""

from __future__ import annotations

import math

from edgeprune.errors import BudgetError
from edgeprune.graph.capture import Program
from edgeprune.progress import Progress
from edgeprune.search.candidate import Candidate
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.probing import Prober

CHOICES = ("taylor", "l2")  # the first where nothing can be told


class OpenCriterion:
    """Has a cutter score the units of each candidate by the criterion whose cut of it loses least.

    It is found out once for as long as a search goes on from a candidate, at the shares that are asked for first. The
    cuts that are compared are of channels alone; where an allocation measures each cut, they are to the greedy widths,
    which it then measures beside its own, by the criterion that was taken.
    """

    def __init__(self, cutter: Cutter, prober: Prober, progress: Progress) -> None:
        self._cutter, self._prober, self._progress = cutter, prober, progress
        self._latest: Program | None = None

    def settle(self, best: Candidate, shares: Shares, kind: str = "such a cut") -> str:
        """Cut a candidate to these shares of its own costs by each criterion; the one that it goes by from now on.

        Args:
            best: the candidate.
            shares: of its own costs.
            kind: what the cuts that are compared are beside the one that is to be made, for the user to be told.

        Raises:
            BudgetError: no such cut meets the shares; the first criterion is in force then.
        """
        if self._latest is not best.program:
            self._progress.stage("compare what a cut loses by each criterion")
            losses = self._losses(best, shares)
            chosen = min(losses, key=losses.__getitem__)
            others = ", ".join(f"{loss:.4g} by {name}" for name, loss in losses.items() if name != chosen)
            told = f"untrained the loss of {kind} is {losses[chosen]:.4g}, {others}"
            self._progress.say(f"channels go by {chosen}: {told}")
            self._cutter.score_by(chosen)
            self._latest = best.program
        return self._cutter.manner.criterion

    def _losses(self, best: Candidate, shares: Shares) -> dict[str, float]:
        try:
            return {criterion: self._loss(best, shares, criterion) for criterion in CHOICES}
        except BudgetError:
            self._cutter.score_by(CHOICES[0])
            raise

    def _loss(self, best: Candidate, shares: Shares, criterion: str) -> float:
        """The loss of such a cut, once what is left has taken over; infinite where it is no number."""
        self._cutter.score_by(criterion)
        slim, settled = self._cutter.tried(self._cutter.planned(best, shares), best)
        loss = self._prober.probed(slim.own_module(), settled)
        return loss if math.isfinite(loss) else math.inf
