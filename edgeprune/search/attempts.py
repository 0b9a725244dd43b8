"""Smaller and smaller for as long as the quality holds: a step that lost too much makes the next one smaller."""

from __future__ import annotations

from collections.abc import Callable

from edgeprune.search.candidate import Candidate
from edgeprune.search.step import Step
from edgeprune.search.trainer import Round

FEATURE_EFFORT = 0.4  # of the training that the search may take goes into dropping input features at most
PATIENCE = 2  # how often a step that lost too much is tried again at half its size
AGAIN = Round(1).units  # finetunings' worth: what lost too much, trained once more

Propose = Callable[[Candidate, float], Candidate | None]  # the next of the best so far, by a factor; None: no more


def while_it_holds(step: Step, start: Candidate, propose: Propose, limit: float | None, factor: float) -> Candidate:
    """Take what `propose` makes while it loses at most `limit`, in the metric's unit; `start` where nothing holds."""
    best, failures = start, 0
    while failures <= PATIENCE:
        candidate = propose(best, factor)
        if candidate is None:
            break
        accepted = step.judged(candidate, limit, rounds=int(step.effort.affords(AGAIN, FEATURE_EFFORT)))
        if accepted is not None:
            best = accepted
            continue
        failures += 1
        factor = smaller_step(factor)
    return best


def smaller_step(factor: float) -> float:
    """The share to keep where keeping `factor` lost too much: half as much goes."""
    return (1 + factor) / 2
