"""Whole residual blocks go, and layers become two of low rank, where that loses less than narrower layers do.

What each of them loses alone on the validation split is held against what it saves: that is the order in which they
are tried. A cut then takes ever more of them, channels making up for the rest of the way, for as long as what is left
of the network, reconstructed, loses less than before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

from torch import nn

from edgeprune.errors import BudgetError
from edgeprune.graph.capture import Program
from edgeprune.progress import Progress
from edgeprune.pruning.blocks import gated
from edgeprune.pruning.plan import PlannedBlock, PlannedSplit
from edgeprune.search.candidate import Candidate
from edgeprune.search.cutter import Cutter, Piece
from edgeprune.search.landing import Shares
from edgeprune.search.probing import Prober

_RANKS = (0.25, 0.5, 0.75)  # of the highest rank at which two layers have fewer weights than one


class Structure:
    """Cuts as a cutter does, with more among what may go: whole blocks (`depth`), and ranks (`lowrank`)."""

    def __init__(  # noqa: PLR0913 - what cuts, what measures, who watches, and what may go
        self, cutter: Cutter, prober: Prober, progress: Progress, *, depth: bool = False, lowrank: bool = False
    ) -> None:
        self._cutter, self._prober, self._progress = cutter, prober, progress
        self._depth, self._lowrank = depth, lowrank
        self._said = False
        self._latest: tuple[Program, tuple[Piece, ...]] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """What was asked for, as options."""
        return tuple(name for name, asked in (("--depth", self._depth), ("--lowrank", self._lowrank)) if asked)

    def pruned(self, best: Candidate, shares: Shares) -> Candidate:
        """The candidate at these shares of its own costs, proved, with as many pieces as lose less than channels do.

        Raises:
            BudgetError: as the cutter, where it can be reached neither way.
        """
        order = self._ranked(best)
        if not order:
            return self._cutter.pruned(best, shares)
        found, missed = self._with(best, shares, ())
        loss = math.inf if found is None else self._loss(found)
        by_channels = loss
        taken: Sequence[Piece] = ()
        for count in range(1, len(order) + 1):
            smaller, reason = self._with(best, shares, order[:count])
            if smaller is None:
                missed = missed or reason
                continue
            lost = self._loss(smaller)
            if lost >= loss:
                break
            found, loss, taken = smaller, lost, order[:count]
        if found is None:
            assert missed is not None
            raise missed
        self._tell(taken, loss, by_channels)
        return found

    def trial(self, best: Candidate, shares: Shares) -> Candidate:
        """The same to be looked at and thrown away: by channels alone, else by as few pieces as it takes.

        Raises:
            BudgetError: as the cutter, where it can be reached neither way.
        """
        try:
            return self._cutter.trial(best, shares)
        except BudgetError:
            order = self._ranked(best)
            for count in range(1, len(order) + 1):
                with suppress(BudgetError):  # one piece more may do
                    return self._cutter.trial(best, shares, order[:count])
            raise

    def _tell(self, taken: Sequence[Piece], loss: float, by_channels: float) -> None:
        if not taken:
            return
        beside = "channels alone cannot do it" if by_channels == math.inf else f"{by_channels:.3f} by channels alone"
        gone = _listed([one for one in taken if isinstance(one, PlannedBlock)], "goes whole", "go whole")
        halved = _listed([one for one in taken if isinstance(one, PlannedSplit)], "is split", "are split")
        self._progress.say(f"{' and '.join(text for text in (gone, halved) if text)}: loss {loss:.3f}, {beside}")

    def _with(
        self, best: Candidate, shares: Shares, pieces: Sequence[Piece]
    ) -> tuple[Candidate | None, BudgetError | None]:
        """The candidate without blocks and with layers split, and narrower; or why there is none."""
        if pieces:
            self._progress.stage(f"try it {', '.join(_doing(one) for one in pieces)}")
        try:
            return self._cutter.pruned(best, shares, pieces=pieces), None
        except BudgetError as error:
            return None, error

    def _loss(self, candidate: Candidate) -> float:
        settled = candidate.reconstruction is not None and candidate.reconstruction.helps
        return self._prober.probed(candidate.program.own_module(), settled)

    # -- the order -------------------------------------------------------------------------------------------------

    def _ranked(self, best: Candidate) -> tuple[Piece, ...]:
        """What may go in the order of what it loses for what it saves, found once for a candidate."""
        if self._latest is None or self._latest[0] is not best.program:
            self._latest = (best.program, self._in_order(best))
        return self._latest[1]

    def _in_order(self, best: Candidate) -> tuple[Piece, ...]:
        """The same, measured; of what excludes one another the first."""
        blocks: Sequence[Piece] = self._cutter.free_blocks(best) if self._depth else ()
        splits: Sequence[Piece] = tuple(self._splits(best)) if self._lowrank else ()
        prices = self._prices(best, blocks, splits) if blocks or splits else {}
        if self._lowrank:
            self._tell_none(prices)
        chosen: list[Piece] = []
        for piece in sorted(prices, key=lambda one: prices[one]):
            if not any(_tensors(piece) & _tensors(other) for other in chosen):
                chosen.append(piece)
        return tuple(chosen)

    def _tell_none(self, prices: Collection[Piece]) -> None:
        """Say it once where no layer pays in two."""
        if not self._said and not any(isinstance(piece, PlannedSplit) for piece in prices):
            self._said = True
            self._progress.say("--lowrank: no layer is split: there is none whose two halves would cost less")

    def _prices(self, best: Candidate, blocks: Sequence[Piece], splits: Sequence[Piece]) -> dict[Piece, float]:
        """Of all that saves something the loss for what it saves; below 0 where it loses nothing."""
        counts = ((len(blocks), "blocks"), (len(splits), "layers in two"))
        self._progress.stage(f"measure what {' and '.join(f'{n} {what}' for n, what in counts if n)} lose")
        dense = self._prober.probed(best.program.own_module(), settled=True)
        prices: dict[Piece, float] = {}
        for number, piece in enumerate((*blocks, *splits), 1):
            smaller = self._cutter.with_pieces(best, (piece,))
            rise = self._prober.probed(_alone(best, piece, smaller), settled=False) - dense
            saved = self._cutter.costs.saved(best, smaller)
            if saved > 0:
                prices[piece] = rise / saved if rise > 0 else rise * saved
            note = f"{called(piece)}: loss {rise:+.3f} for {saved:.1%} of the cost"
            self._progress.advance(number, len(blocks) + len(splits), note)
        return prices

    def _splits(self, best: Candidate) -> Iterator[PlannedSplit]:
        """Each layer that may be split at a few ranks, which are such widths as the alignment prefers."""
        alignment = self._cutter.alignment(best)
        for layer in self._cutter.free_layers(best):
            multiple = alignment.multiple_at(layer.worth)
            ranks = {int(share * layer.worth) // multiple * multiple for share in _RANKS}
            for rank in sorted(ranks - {0}):
                yield PlannedSplit(layer.weight, rank)


def called(piece: Piece) -> str:
    """What is told of a block, or of a layer with its rank."""
    if isinstance(piece, PlannedBlock):
        return piece.name
    return f"{piece.weight.removesuffix('.weight')} at rank {piece.rank}"


def _listed(pieces: Sequence[Piece], one: str, several: str) -> str:
    """What happens to these, in words; nothing where there are none."""
    return f"{', '.join(map(called, pieces))} {one if len(pieces) == 1 else several}" if pieces else ""


def _doing(piece: Piece) -> str:
    return f"{'without' if isinstance(piece, PlannedBlock) else 'with'} {called(piece)}"


def _alone(best: Candidate, piece: Piece, smaller: Candidate) -> nn.Module:
    """The network with one piece alone."""
    return gated(best.program, (piece,)) if isinstance(piece, PlannedBlock) else smaller.program.own_module()


def _tensors(piece: Piece) -> set[str]:
    return set(piece.tensors) if isinstance(piece, PlannedBlock) else {piece.weight}
