"""Replay of a plan: the cut is given, and only proved, finetuned and judged."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import BudgetError
from edgeprune.pruning.plan import PruningPlan
from edgeprune.search import refusals
from edgeprune.search.candidate import Budgets, Found
from edgeprune.search.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Cuts by a given plan; the budgets are judged as those of a search are."""

    plan: PruningPlan

    @property
    def name(self) -> str:
        """What it is called."""
        return "replay"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Cut by the plan, prove it and finetune.

        Raises:
            PlanError: the plan does not fit.
            BudgetError: the network that it makes is not within a budget.
        """
        dense = step.begin()
        limit = step.limit(budgets.max_drop)
        best = step.rescued(step.replayed(self.plan), limit)
        share, wanted = best.macs / dense.macs, budgets.n_features
        if budgets.keep_macs is not None and share > budgets.keep_macs:
            raise BudgetError(f"--plan: expected at most {budgets.keep_macs:g} of the MACs, got {share:.4f}")
        if wanted is not None and best.n_features is not None and best.n_features > wanted:
            raise BudgetError(f"--plan: expected at most {wanted} input features, got {best.n_features}")
        if not step.is_within(best, limit):
            raise BudgetError(refusals.missed(step, budgets, best))
        return step.found(best)
