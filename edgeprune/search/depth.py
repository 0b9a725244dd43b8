"""Whole residual blocks go where that loses less than narrower layers do, by what the validation split says.

Each block's gate is closed alone, and its rise of the loss held against what it would save: that is the order in which
blocks are tried. A cut then takes ever more of them, channels making up for the rest of the way, for as long as what is
left of the network, reconstructed, loses less than before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeprune.errors import BudgetError
from edgeprune.progress import Progress
from edgeprune.pruning.blocks import gated
from edgeprune.pruning.plan import PlannedBlock
from edgeprune.search.candidate import Candidate
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.probing import Prober


class Depth:
    """Cuts as a cutter does, with whole blocks among what may go."""

    def __init__(self, cutter: Cutter, prober: Prober, progress: Progress) -> None:
        self._cutter, self._prober, self._progress = cutter, prober, progress

    def pruned(self, best: Candidate, shares: Shares) -> Candidate:
        """The candidate at these shares of its own costs, proved, with as many blocks as lose less than channels do.

        Raises:
            BudgetError: as the cutter, where it can be reached neither way.
        """
        order = self._ranked(best)
        if not order:
            return self._cutter.pruned(best, shares)
        found, told = self._without(best, shares, ())
        loss = math.inf if found is None else self._loss(found)
        by_channels = loss
        taken: Sequence[PlannedBlock] = ()
        for count in range(1, len(order) + 1):
            smaller, reason = self._without(best, shares, order[:count])
            if smaller is None:
                told = told or reason
                continue
            lost = self._loss(smaller)
            if lost >= loss:
                break
            found, loss, taken = smaller, lost, order[:count]
        if found is None:
            raise BudgetError(told)
        self._tell(taken, loss, by_channels)
        return found

    def _tell(self, taken: Sequence[PlannedBlock], loss: float, by_channels: float) -> None:
        if not taken:
            return
        beside = "channels alone cannot do it" if by_channels == math.inf else f"{by_channels:.3f} by channels alone"
        names = ", ".join(block.name for block in taken)
        self._progress.say(f"{names} {'goes' if len(taken) == 1 else 'go'} whole: loss {loss:.3f}, {beside}")

    def _without(self, best: Candidate, shares: Shares, blocks: Sequence[PlannedBlock]) -> tuple[Candidate | None, str]:
        """The candidate without blocks, and narrower; or why there is none."""
        if blocks:
            self._progress.stage(f"try it without {', '.join(block.name for block in blocks)}")
        try:
            return self._cutter.pruned(best, shares, blocks=blocks), ""
        except BudgetError as error:
            return None, str(error)

    def _loss(self, candidate: Candidate) -> float:
        settled = candidate.reconstruction is not None and candidate.reconstruction.helps
        return self._prober.probed(candidate.program.own_module(), settled)

    def _ranked(self, best: Candidate) -> tuple[PlannedBlock, ...]:
        """The blocks in the order of what they lose for what they save; of those within one another the first."""
        blocks = self._cutter.free_blocks(best)
        if not blocks:
            return ()
        self._progress.stage(f"measure what {len(blocks)} blocks lose")
        dense = self._prober.probed(best.program.own_module(), settled=True)
        prices: dict[PlannedBlock, float] = {}
        for number, block in enumerate(blocks, 1):
            rise = self._prober.probed(gated(best.program, (block,)), settled=False) - dense
            saved = self._cutter.costs.saved(best, self._cutter.without_blocks(best, (block,)))
            if saved > 0:
                prices[block] = rise / saved if rise > 0 else rise * saved
            note = f"{block.name}: loss {rise:+.3f} for {saved:.1%} of the cost"
            self._progress.advance(number, len(blocks), note)
        chosen: list[PlannedBlock] = []
        for block in sorted(prices, key=lambda one: prices[one]):
            if not any(set(block.tensors) & set(other.tensors) for other in chosen):
                chosen.append(block)
        return tuple(chosen)
