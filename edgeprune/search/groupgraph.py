"""The channel groups of a network as a graph that predictors read: what each has at given widths, who is joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.cost.models import CostModel, macs_model
from edgeprune.graph.groups import ChannelGraph, ChannelGroup
from edgeprune.predictors.base import Wiring
from edgeprune.pruning.choosing import Chooser
from edgeprune.search.losses import Key, keys

_RANKS = (2, 3, 4, 5)  # of a weight: linear layers, and convolutions over one, two and three dims


@dataclass(frozen=True, slots=True, eq=False)
class GroupGraph:
    """The groups of the dense network that a choice is made for; known by their `keys` in smaller ones too.

    `lost` holds for each `(n_units + 1,)` the importance of what has gone when so many units are left.
    """

    keys: tuple[Key, ...]
    lost: tuple[np.ndarray, ...]
    wiring: Wiring

    @classmethod
    def of(cls, chooser: Chooser, groups: Sequence[int]) -> GroupGraph:
        """The graph of these groups of the dense network, which has lost nothing yet."""
        graph, known = chooser.graph, keys(chooser.graph)
        model = macs_model(graph)
        fixed = np.array([_fixed(graph, model, g) for g in groups])
        adjacent = np.array([[bool(_shared(model, g, other)) for other in groups] for g in groups])
        lost = tuple(chooser.sums[g][::-1].copy() for g in groups)
        return cls(tuple(known[g] for g in groups), lost, Wiring(fixed, adjacent))

    def columns(self, graph: ChannelGraph) -> list[int | None]:
        """The numbers of the groups in the dense network or in one that was cut of it; None where one is not there."""
        numbers = {key: g for g, key in enumerate(keys(graph))}
        return [numbers.get(key) for key in self.keys]

    def counts(self, graph: ChannelGraph, counts: np.ndarray) -> np.ndarray:
        """The counts of the graph's own groups, `(n, n_groups of the graph)` in, `(n, n_groups)` out.

        What a cut has left of a group and cannot be told apart any more counts as whole.
        """
        whole = [np.full(len(counts), len(lost) - 1) for lost in self.lost]
        columns = self.columns(graph)
        return np.stack([counts[:, g] if g is not None else full for g, full in zip(columns, whole, strict=True)], 1)

    def features(self, counts: np.ndarray) -> np.ndarray:
        """What the groups have at these widths, `(n, n_groups)` in, `(n, n_groups, n_features)` out.

        The share of the units that is kept and its logarithm, and the share of the group's importance that is lost.
        """
        parts = []
        for column, lost in enumerate(self.lost):
            share = counts[:, column] / (len(lost) - 1)
            parts.append(np.stack([share, np.log(share), lost[counts[:, column]] / (lost[0] or 1.0)], 1))
        return np.stack(parts, 1)

    def lost_in_all(self, counts: np.ndarray) -> np.ndarray:
        """The importance of all that has gone, `(n,)`: what the greedy choice takes for the loss."""
        return np.asarray(sum(lost[counts[:, column]] for column, lost in enumerate(self.lost)))


def _fixed(graph: ChannelGraph, model: CostModel, g: int) -> list[float]:
    """The share of the MACs, the depth, the kind of layer and how many layers and units a group has."""
    group, touching = graph.groups[g], model.touching[g]
    whole = np.array([one.n_units for one in graph.groups])
    depth = min(touching, default=0) / max(1, len(model.products))
    kinds = [float(rank in _ranks(graph, group)) for rank in _RANKS]
    sizes = [np.log(group.n_units), float(len(touching)), float(len(group.layers)), float(group.is_input)]
    return [model.share(g, whole) / max(model.total, 1.0), depth, *kinds, *sizes]


def _ranks(graph: ChannelGraph, group: ChannelGroup) -> set[int]:
    """How many dims the weights have that produce or read the units."""
    return {graph.analysis.tensors.rank(slot.name) for slot in group.slots if slot.kind == "tensor"}


def _shared(model: CostModel, g: int, other: int) -> set[int]:
    return set(model.touching[g]) & set(model.touching[other]) if g != other else set()
