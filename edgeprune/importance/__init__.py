"""Importance: how much each unit matters, by one of several criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.export import ExportedProgram

from edgeprune.catalog import find
from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.graph.groups import ChannelGraph
from edgeprune.importance import criteria
from edgeprune.importance.activation import Batches
from edgeprune.importance.features import check_count, kept_features, least_features
from edgeprune.importance.once import counted_once
from edgeprune.importance.units import Scores, Tensors, protected
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task

# Those that need nothing but the weights.
BY_WEIGHTS: Mapping[str, Callable[[ChannelGraph, Tensors], Scores]] = {
    "l1": lambda graph, tensors: criteria.magnitude(graph, tensors, 1),
    "l2": lambda graph, tensors: criteria.magnitude(graph, tensors, 2),
    "bn-scale": criteria.bn_scale,
    "lamp": criteria.lamp,
    "fpgm": criteria.fpgm,
}
# Those that need real batches.
BY_DATA: Mapping[str, Callable[[ExportedProgram, ChannelGraph, Batches, Task, Ranks], Scores]] = {
    "taylor": criteria.taylor,
    "outgoing": criteria.outgoing,
    "activation": lambda program, graph, batches, task, ranks: criteria.activation(program, graph, batches, ranks),
}
EFFECTS = ("taylor", "outgoing")  # on the loss: they compare over groups, at what a unit saves


def score(  # noqa: PLR0913 - whose units, by what, and what they are looked at with
    program: ExportedProgram,
    graph: ChannelGraph,
    criterion: str,
    *,
    batches: Batches = (),
    seed: int = 0,
    task: Task = CLASSIFICATION,
    ranks: Ranks = ALONE,
) -> Scores:
    """Scores `(n_units,)` for each group by one of the catalog's criteria; higher matters more.

    Args:
        batches: normalised inputs and targets, for "taylor", "outgoing" and "activation".
        seed: for "random".
        task: what "taylor" and "outgoing" take the gradients of.
        ranks: the processes that each have those batches which are theirs in turn; all get the scores over all batches.

    Raises:
        InputError: an unknown criterion, or one that the network or the data do not serve.
    """
    find("criterion", criterion)
    if criterion in BY_WEIGHTS:
        return BY_WEIGHTS[criterion](graph, {**program.constants, **program.state_dict})
    if criterion in BY_DATA:
        return BY_DATA[criterion](program, graph, batches, task, ranks)
    return criteria.random_scores(graph, seed)


__all__ = [
    "BY_DATA",
    "BY_WEIGHTS",
    "EFFECTS",
    "Batches",
    "Scores",
    "Tensors",
    "check_count",
    "counted_once",
    "kept_features",
    "least_features",
    "protected",
    "score",
]
