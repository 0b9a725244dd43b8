"""What chooses the widths of a cut in place of the greedy pass, where a strategy has put one in."""

from __future__ import annotations

from typing import Protocol

from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.planner import Allocate
from edgeprune.search.candidate import Candidate
from edgeprune.search.landing import Shares


class Allocation(Protocol):
    """The choice of all widths of a search; what it has learned of the dense network it uses for smaller ones too."""

    def at(self, best: Candidate, graph: ChannelGraph, shares: Shares) -> Allocate:
        """What chooses the widths of a cut of this candidate, with these groups, to these shares of its own costs."""
