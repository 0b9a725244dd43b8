"""Fewer input features: chosen while the network is trained, or by their scores where it is not."""

from __future__ import annotations

from edgeprune.errors import BudgetError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.search.attempts import FEATURE_EFFORT, while_it_holds
from edgeprune.search.candidate import Budgets, Candidate
from edgeprune.search.landing import Shares
from edgeprune.search.step import Step

_FACTOR = 0.5  # share of the features that one step keeps
_SHARE = 0.5  # of the drop allowed may go into dropping input features; channels need the rest


def down_to_features(step: Step, budgets: Budgets, start: Candidate) -> Candidate:
    """Remove features until as many are left as are asked for; the drop is judged at the end."""
    wanted, best = budgets.n_features, start
    assert wanted is not None
    while best.n_features is not None and best.n_features > wanted:
        least = wanted if step.selects else max(wanted, int(best.n_features * _FACTOR))
        fewer = _with_features(step, best, least)
        if fewer.n_features is None or fewer.n_features >= best.n_features:
            raise BudgetError(f"input features: expected {wanted} to be left, got {best.n_features}: no more can go")
        best = step.rescued(fewer, _half_of(step.limit(budgets.max_drop)), rounds=1)
        step.record(best, accepted=True)
    for line in told_features(wanted, step.cutter.graph, best):
        step.progress.say(line)
    return best


def fewest_features(step: Step, budgets: Budgets, start: Candidate) -> Candidate:
    """Remove features for as long as half of the drop allowed lasts."""
    least = step.cutter.least_features

    def fewer(best: Candidate, factor: float) -> Candidate | None:
        if best.n_features is None or best.n_features <= least:
            return None
        if not step.affords_selection(FEATURE_EFFORT):
            return None
        wanted = min(best.n_features - 1, int(best.n_features * factor))
        return _with_features(step, best, max(least, wanted))

    return while_it_holds(step, start, fewer, _half_of(step.limit(budgets.max_drop)), _FACTOR)


def told_features(wanted: int | None, graph: ChannelGraph, best: Candidate) -> tuple[str, ...]:
    """That fewer features are left than were asked for, and why; nothing where it is as many.

    Args:
        wanted: how many were asked for.
        graph: of the dense network, with its input features.
        best: the network that was found.
    """
    if wanted is None or best.n_features is None or best.n_features >= wanted:
        return ()
    _, sizes = graph.features()
    goes_together = any(own.max(initial=0) > 1 for own in sizes)
    why = "the others only go together, more than there is room for" if goes_together else "no more are read"
    return (f"input features: {wanted} asked, {best.n_features} kept: {why}",)


def _half_of(limit: float | None) -> float | None:
    return None if limit is None else _SHARE * limit


def _with_features(step: Step, best: Candidate, n_features: int) -> Candidate:
    """The network with fewer features."""
    return step.selected(best, n_features) if step.selects else step.tried(best, Shares(), n_features)
