"""The widths of a cut by a predictor: evolved within its budgets, the best few measured beside the greedy choice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.predictors.base import Predict
from edgeprune.pruning.choosing import Chooser, Pruning
from edgeprune.pruning.planner import Allocate, make_plan
from edgeprune.search.candidate import Candidate
from edgeprune.search.evolution import evolved
from edgeprune.search.groupgraph import GroupGraph
from edgeprune.search.landing import Shares
from edgeprune.search.probing import Prober
from edgeprune.search.step import Step
from edgeprune.search.vectors import Space, distinct

RIVALS = 8  # choices that are measured beside the greedy one
_LOOKED = 128  # samples by which what is left takes over, where cuts are looked at alone
FEWEST = 20  # choices: fewer are all measured, and nothing is foretold


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """Measures choices of widths: cut, what is left takes over, batch norm is estimated again, the loss is taken.

    It stops after so many `seconds` by its `clock`.
    """

    step: Step
    prober: Prober
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def losses(self, chooser: Chooser, counts: Iterable[np.ndarray], best: Candidate, total: int) -> np.ndarray:
        """What a candidate loses at each of these counts, `(n,)`; fewer where the time is over, one at least.

        A loss that is no number is infinite. The chooser's own counts are left as they are.
        """
        return np.array(list(self._each(chooser, counts, best, total)))

    def _each(self, chooser: Chooser, counts: Iterable[np.ndarray], best: Candidate, total: int) -> Iterator[float]:
        started, before, cutter = self.clock(), chooser.counts.copy(), self.step.cutter
        for number, own in enumerate(counts, 1):
            chooser.counts[:] = own
            plan = make_plan(best.program, chooser.graph, chooser.kept())
            chooser.counts[:] = before
            slim, settled = cutter.tried(plan, best, _LOOKED)
            loss = self.prober.probed(slim.own_module(), settled)
            self.step.progress.advance(number, total, f"loss {loss:.3f}")
            yield np.inf if np.isnan(loss) else loss
            if self.clock() - started > self.seconds:
                return


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What was learned of the dense network: by what its groups have, how much a network loses.

    `seen` `(n, n_groups)` are the choices that were measured, of the dense network's groups, the best ones first.
    """

    groups: GroupGraph
    predict: Predict
    seen: np.ndarray

    def losses(self, graph: ChannelGraph, counts: np.ndarray) -> np.ndarray:
        """What is foretold of the counts of a network's groups, `(n, n_groups of the graph)` in, `(n,)` out."""
        return self.predict(self.groups.features(self.groups.counts(graph, counts)))

    def begun(self, graph: ChannelGraph, space: Space, rng: np.random.Generator) -> np.ndarray:
        """The greedy choice, what was measured as far as it fits into the budgets, and as much again that is drawn."""
        columns = {g: number for number, g in enumerate(self.groups.columns(graph)) if g is not None}
        shares = np.ones((len(self.seen), len(space.free)))
        for place, (g, own) in enumerate(zip(space.free, space.widths, strict=True)):
            if g in columns:
                shares[:, place] = (self.seen[:, columns[g]] - own[0]) / (own[-1] - own[0])
        drawn = space.sampled(len(self.seen), rng)
        return np.concatenate([space.greedy[None], space.within(shares.clip(0, 1), rng), drawn])


class Guided:
    """Chooses the widths of all cuts of a search; without a model every choice that is drawn is measured, up to 20.

    A choice is no worse than the greedy one on what is measured. Trial cuts that ask for the same have the same.
    """

    def __init__(self, scorer: Scorer, model: Model | None, seed: int) -> None:
        self._scorer, self._model, self._seed = scorer, model, seed
        self._program: Program | None = None
        self._known: dict[tuple[Shares, tuple[int, ...]], np.ndarray] = {}

    def at(self, best: Candidate, graph: ChannelGraph, shares: Shares) -> Allocate:
        """What chooses the widths of a cut of this candidate, with these groups, to these shares of its own costs."""
        return partial(self._choose, best, shares)

    def _choose(self, best: Candidate, shares: Shares, pruning: Pruning, features: bool) -> None:
        if self._program is not best.program:
            self._program, self._known = best.program, {}
        key = shares, (*pruning.eligible, *pruning.chooser.steps)
        if key not in self._known:
            self._known[key] = self._chosen(best, pruning, features)
        pruning.chooser.counts[:] = self._known[key]

    def _chosen(self, best: Candidate, pruning: Pruning, features: bool) -> np.ndarray:
        space, progress = Space.of(pruning, features), self._scorer.step.progress
        rivals = self._rivals(pruning.chooser.graph, space)
        if len(rivals) == 1:
            progress.say("predictor: no other widths than the greedy ones use up the budgets, so that they are taken")
            return space.greedy
        progress.stage(f"measure what {len(rivals)} choices of widths lose")
        losses = self._scorer.losses(pruning.chooser, rivals, best, len(rivals))
        least = int(np.argmin(losses))
        progress.say(
            f"predictor: of {len(losses)} choices of widths that were measured the best has a loss of "
            f"{losses[least]:.4f} on the validation split, the greedy one {losses[0]:.4f}"
        )
        return rivals[least]

    def _rivals(self, graph: ChannelGraph, space: Space) -> np.ndarray:
        """The greedy choice, then others to measure beside it."""
        rng, greedy = np.random.default_rng(self._seed), space.greedy[None]
        if not space.free:
            return greedy
        if self._model is None:
            return distinct(np.concatenate([greedy, space.sampled(FEWEST, rng)]))
        model = self._model
        best = evolved(space, lambda counts: model.losses(graph, counts), model.begun(graph, space, rng), rng)
        return distinct(np.concatenate([greedy, best[:RIVALS]]))
