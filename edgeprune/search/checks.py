"""What is refused before anything is searched: budgets that no search can reach, and plans that do not fit."""

from __future__ import annotations

from edgeprune.errors import BudgetError, InputError
from edgeprune.pruning.choosing import first_of, locked_layers
from edgeprune.pruning.folding import has_zeros, is_constant
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import plan as make_step_plan
from edgeprune.search.candidate import Budgets
from edgeprune.search.cutter import Cutter


def check(cutter: Cutter, budgets: Budgets, plan: PruningPlan | None = None) -> None:
    """Refuse at once what no search can reach, or a plan that does not fit.

    Raises:
        PlanError: the plan does not fit.
        InputError: features are asked for that the network has not, or nothing in it has an influence on its outputs,
            as before a last layer that starts at zero is trained.
        BudgetError: nothing can be pruned, or not down to the MACs asked for; says which groups stand in the way.
    """
    _check_features(cutter, budgets)
    if plan is not None:
        cutter.cut_by(plan)
        return
    _check_influence(cutter)
    if not cutter.graph.groups and not cutter.manner.vocabularies:
        locked = first_of(locked_layers(cutter.graph))
        raise BudgetError(f"nothing can be pruned; {f'locked: {locked}' if locked else 'the network has no channels'}")
    if budgets.keep_macs is not None:
        make_step_plan(
            cutter.dense.program,
            cutter.graph,
            budgets.keep_macs,
            "l2",
            cutter.manner.align,
            n_features=budgets.n_features,
            appliable=cutter.manner.appliable,
            leave=cutter.manner.leave,
            layer_ratios=cutter.manner.layer_ratios,
        )


def _check_influence(cutter: Cutter) -> None:
    program = cutter.dense.program
    if has_zeros(program) and is_constant(program):
        zero = [name for name, p in program.named_parameters() if p.dim() > 1 and not p.any()]
        raise InputError(
            "the network gives the same outputs whatever comes in, so that nothing would be left of it: expected "
            f"trained weights, got zeros (all of {', '.join(zero) or 'none'}); train it first"
        )


def _check_features(cutter: Cutter, budgets: Budgets) -> None:
    wanted, available = budgets.n_features, cutter.dense.n_features
    if wanted is None and budgets.feature_ratio is None:
        return
    if not available:
        raise InputError(
            "--input-features: the network has no input feature that can be removed (a convolution shares its "
            "weights over all positions, so that single pixels cannot go); use --input-features off, or auto, "
            "which tells what border, rows or patches of the images never matter"
        )
    least = cutter.least_features
    if wanted is None or not least <= wanted <= available:
        of = ", ".join(group.name for group in cutter.graph.groups if group.is_input)
        raise InputError(f"--input-features: expected {least} to {available} (of {of}), got {wanted}")
