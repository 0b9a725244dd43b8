"""What is said where a search comes to no network within its budgets: what stood in the way, and what came closest."""

from __future__ import annotations

from edgeprune.records import Metric
from edgeprune.search.candidate import Budgets, Candidate
from edgeprune.search.step import Step
from edgeprune.tasks.budget import is_within

ALLOW_MORE = "allow a larger --max-drop, larger networks, or more --finetune-epochs"


def missed(step: Step, budgets: Budgets, best: Candidate) -> str:
    """The quality does not hold at the costs that were asked for."""
    metric, dense, limit = step.metric, step.dense.val_value, step.limit(budgets.max_drop)
    assert dense is not None
    assert limit is not None
    held = [
        tried
        for tried in step.records
        if tried.val_value is not None and is_within(metric.drop(dense, tried.val_value), limit)
    ]
    closest = min(held, key=lambda tried: tried.macs_ratio, default=None)
    told = f"; within it were {closest.macs_ratio:.1%} of the MACs" if closest else ""
    got = f"{metric.number(step.drop(best))} at {best.macs / step.dense.macs:.1%} of the MACs"
    return (
        f"the budgets cannot be met together: expected a drop of at most {_within(metric, limit)} on the "
        f"validation split, got {got}{told}; allow a larger --max-drop or --keep-macs, or more --finetune-epochs"
    )


def nothing_found(step: Step, budgets: Budgets) -> str:
    """No smaller network was accepted, or none could be built."""
    metric, limit = step.metric, step.limit(budgets.max_drop)
    tried = min(step.records, key=lambda one: -one.macs_ratio, default=None)
    if tried is None or tried.val_value is None or step.dense.val_value is None:
        return (
            "nothing smaller can be built: every group is at its least width "
            f"(groups: {', '.join(group.name for group in step.cutter.graph.groups[:4])})"
        )
    assert limit is not None
    drop = metric.number(metric.drop(step.dense.val_value, tried.val_value))
    return (
        f"no smaller network loses at most {_within(metric, limit, metric.name)}: the closest, at "
        f"{tried.macs_ratio:.1%} of the MACs, loses {drop} on the validation split; allow a larger --max-drop or more "
        "--finetune-epochs"
    )


def none_within(metric: Metric, limit: float, least: float, share: float) -> str:
    """None of several networks holds the quality: what the best of them loses, and the share of the MACs it has."""
    return (
        f"no network that was found loses at most {_within(metric, limit, metric.name)}: the best, at {share:.1%} of "
        f"the MACs, loses {metric.number(least)} on the validation split"
    )


def _within(metric: Metric, limit: float, name: str = "") -> str:
    """E.g. "1 points", "1 accuracy points" with the metric's name, "3.2" where the metric has no unit."""
    return " ".join(part for part in (f"{limit:g}", name, metric.unit) if part)
