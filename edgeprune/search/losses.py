"""What the groups of a network were seen to lose, and which of them are those of a smaller network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.knapsack import Curve

Key = tuple[str, int]  # the name of a group, and which one it is of those that are called so
Losses = Mapping[Key, Curve]


def keys(graph: ChannelGraph) -> list[Key]:
    """What each group is known by, in the networks cut of this one too."""
    seen: Counter[str] = Counter()
    found = []
    for group in graph.groups:
        found.append((group.name, seen[group.name]))
        seen[group.name] += 1
    return found


def known_losses(losses: Losses, graph: ChannelGraph) -> dict[int, Curve]:
    """The curves of a network's groups, by number; units are counted as they are, however many the dense one has."""
    return {g: losses[key] for g, key in enumerate(keys(graph)) if key in losses}
