"""What is said where a search comes to no network within its budgets: what stood in the way, and what came closest."""

from __future__ import annotations

from edgeprune.search.candidate import Budgets, Candidate
from edgeprune.search.landing import Targets
from edgeprune.search.step import Step
from edgeprune.tasks.drop import drop_points, is_within


def missed(step: Step, budgets: Budgets, best: Candidate) -> str:
    """The accuracy does not hold at the costs that were asked for."""
    dense = step.dense.val_accuracy or 0.0
    limit = budgets.max_drop or 0.0
    held = [
        tried
        for tried in step.records
        if tried.val_accuracy is not None and is_within(drop_points(dense, tried.val_accuracy), limit)
    ]
    closest = min(held, key=lambda tried: tried.macs_ratio, default=None)
    told = f"; within it were {closest.macs_ratio:.1%} of the MACs" if closest else ""
    return (
        f"the budgets cannot be met together: expected a drop of at most {budgets.max_drop:g} points on the "
        f"validation split, got {step.drop(best):.2f} at {best.macs / step.dense.macs:.1%} of the MACs{told}; "
        f"allow a larger --max-drop or --keep-macs, or more --finetune-epochs"
    )


def not_met(step: Step, targets: Targets, best: Candidate) -> str:
    """What is measured of the file does not come down to its budget."""
    over = "; ".join(f"{goal.what}: {goal.measured / goal.most:.2f} times that" for goal in targets.over())
    return (
        f"the budgets cannot be met: the closest network, at {best.macs / step.dense.macs:.1%} of the MACs, has "
        f"{over}; allow more, or a lower --align"
    )


def nothing_found(step: Step, budgets: Budgets) -> str:
    """No smaller network was accepted, or none could be built."""
    tried = min(step.records, key=lambda one: -one.macs_ratio, default=None)
    if tried is None or tried.val_accuracy is None or step.dense.val_accuracy is None:
        return (
            "nothing smaller can be built: every group is at its least width; a lower --align may help "
            f"(groups: {', '.join(group.name for group in step.cutter.graph.groups[:4])})"
        )
    return (
        f"no smaller network loses at most {budgets.max_drop:g} accuracy points: the closest, at "
        f"{tried.macs_ratio:.1%} of the MACs, loses {drop_points(step.dense.val_accuracy, tried.val_accuracy):.2f} on "
        "the validation split; allow a larger --max-drop or more --finetune-epochs"
    )
