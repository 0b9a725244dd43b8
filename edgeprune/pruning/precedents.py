"""What a plan says of a network's units, for analyses of that network and of the one that is cut by it."""

from __future__ import annotations

import numpy as np

from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.precedents import Precedents
from edgeprune.pruning.plan import PruningPlan


def left_by(graph: ChannelGraph, plan: PruningPlan) -> Precedents:
    """What goes together in the network that a plan makes.

    Args:
        graph: of the network that the plan slices: the dense one, folded and without blocks where the plan says so.
        plan: what is kept of it.
    """
    units: dict[tuple[str, int], np.ndarray] = {}
    for kind, name, dim in graph.analysis.sources:
        labels = graph.labels(kind, name, dim)
        if kind == "tensor" and dim is not None and labels is not None:
            kept = plan.tensors.get(name, {}).get(dim)
            units[name, dim] = labels if kept is None else labels[list(kept)]
    return Precedents(units=units)


def asked_by(plan: PruningPlan) -> Precedents:
    """What a plan keeps of the network that it slices."""
    return Precedents(kept={(name, dim): kept for name, dims in plan.tensors.items() for dim, kept in dims.items()})
