"""The way down where no cost is stated: ever smaller networks, for as long as the accuracy holds and a step pays."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgeprune.errors import BudgetError
from edgeprune.search.candidate import Candidate
from edgeprune.search.landing import Shares
from edgeprune.search.step import FACTOR, Steps

_BOLD = 0.5  # share of the MACs that one step keeps where every step is a finetuning
_LEAST_GAIN = 0.05  # of the MACs: what a step saves at least, to be worth a finetuning
_AGAIN = 2  # finetunings' worth of the first further round
FEATURE_EFFORT = 0.4  # of the training that the search may take goes into dropping input features at most
_PATIENCE = 2  # how often a step that lost too much is tried again at half its size


class Descent(Steps):
    """Shrinks until nothing smaller holds, nothing smaller can be built, or the training allowed is used up."""

    def _shrunk(
        self, start: Candidate, propose: Callable[[Candidate, float], Candidate | None], share: float, factor: float
    ) -> Candidate:
        """Take what `propose` makes while the accuracy holds; a step that lost too much makes the next one smaller."""
        best, failures = start, 0
        while failures <= _PATIENCE:
            candidate = propose(best, factor)
            if candidate is None:
                break
            accepted = self._judged(candidate, share, rounds=int(self.effort.affords(_AGAIN, FEATURE_EFFORT)))
            if accepted is not None:
                best = accepted
                continue
            failures += 1
            factor = (1 + factor) / 2
        return best

    def _smallest_that_holds(self, start: Candidate) -> Candidate:
        """The smallest network found within the accuracy budget; `start` where there is none."""
        if not self._trains:
            return self._shrunk(start, self._next, 1.0, FACTOR)
        best, missed = self._way_down(start)
        for candidate in sorted(missed, key=lambda one: (self._drop(one), -one.macs)):
            if candidate.macs < best.macs and self.effort.affords(_AGAIN):
                again = self._finetuned(candidate, 1)
                self._record(again, self._within(again))
                best = again if self._within(again) else best
        if not self.effort.affords(1):
            self.progress.say(self._stopped())
        return best

    def _way_down(self, start: Candidate) -> tuple[Candidate, list[Candidate]]:
        """The smallest network that held, and those that missed by no more than chance.

        On a small validation split a drop is known to a sample or two only: what missed by so little is pruned on, and
        its successor may well hold. What missed by more ends the way, or is tried again with a smaller step where
        nothing missed by less. Enough of the training allowed is left to finetune one of those once more.
        """
        best = last = start
        missed: list[Candidate] = []
        factor, failures = _BOLD, 0
        while failures <= _PATIENCE:
            if not self.effort.affords(1 + (_AGAIN if missed else 0)):
                break
            candidate = self._next(last, factor)
            if candidate is None:
                break
            held = self._within(candidate)
            self._record(candidate, held)
            if held:
                best = last = candidate
                missed.clear()
            elif self._may_be_chance(candidate):
                missed.append(candidate)
                last = candidate
            elif missed:
                break
            else:
                failures += 1
                factor = (1 + factor) / 2
        return best, missed

    def _next(self, best: Candidate, ratio: float) -> Candidate | None:
        """The next smaller network, or None where nothing smaller can be built that is worth a finetuning."""
        most = best.macs - 1 if self.effort.is_free else (1 - _LEAST_GAIN) * best.macs
        while True:
            try:
                fresh = self._pruned(best, n_features=None, shares=Shares(macs=ratio))
            except BudgetError:
                return None
            if fresh.macs > most:
                return None
            if not self._has_failed(fresh):
                return self._finetuned(fresh)
            ratio = (1 + ratio) / 2  # the same widths lose as much again

    def _may_be_chance(self, candidate: Candidate) -> bool:
        """Whether the drop is above the budget by no more than its standard error."""
        slim, dense, trainer = candidate.val_accuracy, self.dense.val_accuracy, self.trainer
        assert slim is not None
        assert dense is not None
        assert trainer is not None
        n_samples = len(trainer.data.val)  # type: ignore[arg-type]
        error = math.sqrt((slim * (1 - slim) + dense * (1 - dense)) / n_samples)
        return self._drop(candidate) <= (self.budgets.max_drop or 0.0) + 100 * error

    def _stopped(self) -> str:
        return (
            f"the search ends after {self.effort.spent:.0f} finetunings' worth of training; a smaller network may be "
            f"found with more than --max-finetunings {self.effort.most}"
        )
