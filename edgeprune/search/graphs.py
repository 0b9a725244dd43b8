"""The channel groups of the networks of a search, coupled as in the dense one: their cuts are one cut of that."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.pruning.plan import PlannedBlock, PruningPlan
from edgeprune.pruning.precedents import left_by
from edgeprune.pruning.surgery import before_slices, is_sliced_as_it_is
from edgeprune.records import Vocabulary
from edgeprune.search.candidate import Manner


class Graphs:
    """Analyses of the dense network and of what plans make of it; the latest one is kept."""

    def __init__(self, dense: Program, manner: Manner) -> None:
        self._program, self._manner = dense, manner
        self.dense = self.analyzed(dense, None)
        self._latest = (dense, self.dense)
        self._latest_sliced: tuple[tuple[bool, tuple[PlannedBlock, ...]], ChannelGraph] | None = None

    def of(self, program: Program, plan: PruningPlan | None) -> ChannelGraph:
        """The channel groups of the network that a plan made, input features among them where they may go."""
        if plan is None:
            return self.dense
        if self._latest[0] is not program:
            self._latest = (program, self.analyzed(program, plan))
        return self._latest[1]

    def analyzed(
        self, program: Program, plan: PruningPlan | None, kept: Mapping[str, Vocabulary] | None = None
    ) -> ChannelGraph:
        """The same, analysed anew; with rows of vocabularies where it is said which of them are kept.

        Rows are locked in the dense network, where nobody said so; a cut of rows alone leaves nothing to choose.
        """
        how = self._manner
        return analyze(
            program,
            inputs=how.features,
            attention=how.attention,
            rules=how.rules,
            vocabularies=kept,
            precedents=None if plan is None or kept else left_by(self._sliced_by(plan), plan),
        )

    def _sliced_by(self, plan: PruningPlan) -> ChannelGraph:
        """The channel groups of what a plan slices."""
        if is_sliced_as_it_is(plan):
            return self.dense
        key = (plan.folded, plan.blocks)
        if self._latest_sliced is None or self._latest_sliced[0] != key:
            self._latest_sliced = (key, self.analyzed(Program.adopt(before_slices(self._program, plan)), None))
        return self._latest_sliced[1]
