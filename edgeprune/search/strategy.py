"""What a strategy is: a way from the dense network to smaller ones, by steps; and how most of them begin and end."""

from __future__ import annotations

from typing import Protocol

from edgeprune.errors import BudgetError
from edgeprune.search import refusals
from edgeprune.search.candidate import Budgets, Candidate, Found
from edgeprune.search.features import down_to_features, fewest_features
from edgeprune.search.step import Step


class Strategy(Protocol):
    """A search; it decides what is tried next, and holds a `Step` that does it."""

    @property
    def name(self) -> str:
        """What it is called."""

    def search(self, step: Step, budgets: Budgets) -> Found:
        """The networks within the budgets, which `checks.check` has passed.

        Raises:
            BudgetError: there is none; says what stood in the way and the closest that was reached.
        """


def begun(step: Step, budgets: Budgets, competes: bool = False) -> Candidate:
    """The dense network, looked at, without dead units and with the input features and ids that are asked for.

    Features that compete with the channels stay for now.
    """
    step.begin()
    best = step.without_cut_ids(step.without_dead())
    if budgets.n_features is not None:
        return down_to_features(step, budgets, best)
    if budgets.has_costs and competes:
        return best
    if budgets.prune_features and budgets.max_drop is not None and step.dense.n_features:
        return fewest_features(step, budgets, best)
    return best


def ended(step: Step, budgets: Budgets, best: Candidate) -> Found:
    """The one network that a search came to.

    Raises:
        BudgetError: it loses too much, or it is the dense one.
    """
    if not step.is_within(best, step.limit(budgets.max_drop)):
        raise BudgetError(refusals.missed(step, budgets, best))
    if best.plan is None:
        raise BudgetError(refusals.nothing_found(step, budgets))
    return step.found(best)
