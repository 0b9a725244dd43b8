"""Where to cut, by a predictor: choices of all widths together are measured, and what others would lose is learned.

Choices within the budgets are drawn, and each is cut out of the dense network, whose weights it shares: what is left
takes over, batch norm is estimated again, and the loss is taken on a share of the validation split. A graph
convolutional network over the channel groups, a linear model and boosted trees are fitted to that; the one that orders
choices left out best is evolved with. What is evolved is measured beside the greedy choice, at every cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgeprune.errors import BudgetError
from edgeprune.predictors.base import Predictor
from edgeprune.predictors.boosted import Boosted
from edgeprune.predictors.choice import Chosen, choose, tau
from edgeprune.predictors.gcn import GraphNetwork
from edgeprune.predictors.ridge import Ridge
from edgeprune.pruning.choosing import Chooser, Pruning
from edgeprune.search.aiming import within_reach
from edgeprune.search.candidate import Budgets, Found
from edgeprune.search.groupgraph import GroupGraph
from edgeprune.search.guided import FEWEST, Guided, Model, Scorer
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.probing import Prober
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy
from edgeprune.search.vectors import Space

SECONDS = 600.0
_PER_GROUP = 16
_BOUNDS = (64, 256)  # choices that are measured of the dense network
_MEASURED = 1.25  # times a budget that is held by measuring: how far its plan may move
_REACHES = (0.2, 0.5, 0.8)  # of the MACs: how far down a search is taken to go where nothing says it


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A strategy that goes as `inner` does, with all widths chosen by a predictor that it fits first.

    At most `n_samples` choices are measured for it (None: 16 a group, 64 at least, 256 at most), for at most so many
    `seconds` by its `clock`. `reach` is the share of the MACs that `inner` goes down to, where the budgets do not say
    it.
    """

    inner: Strategy
    prober: Prober
    n_samples: int | None = None
    seconds: float = SECONDS
    reach: float | None = None
    clock: Callable[[], float] = time.perf_counter

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.inner.name} by a predictor"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """Measure choices of the dense network's widths, learn what others would lose, then search.

        Raises:
            BudgetError: as `inner`, and where no widths meet a budget; says what stands in the way.
        """
        scorer, seed = Scorer(step, self.prober, self.seconds, self.clock), step.cutter.manner.seed
        step.cutter.allocate_by(Guided(scorer, self._learned(step, budgets, scorer), seed))
        return self.inner.search(step, budgets)

    def _learned(self, step: Step, budgets: Budgets, scorer: Scorer) -> Model | None:
        """What the dense network's groups tell; None, which is said, where there is too little to learn from."""
        found, most = self._surveyed(step, budgets)
        if found is None:
            return None
        space, chooser, seed = found.space, found.chooser, step.cutter.manner.seed
        n = self.n_samples or min(max(_PER_GROUP * len(space.free), _BOUNDS[0]), _BOUNDS[1])
        counts = space.sampled(n, np.random.default_rng(seed), most) if space.free else space.greedy[None]
        if len(counts) < FEWEST:
            step.progress.say(f"predictor: too few choices of widths to learn from ({len(counts)}): all are measured")
            return None
        step.progress.stage(f"measure what {len(counts)} choices of widths lose")
        step.progress.say(f"predictor: up to {len(counts)} cuts are measured, for {self.seconds:.0f} s at most")
        started = scorer.clock()
        losses = scorer.losses(chooser, counts, step.cutter.dense, len(counts))
        step.progress.say(_told(len(losses), len(counts), scorer.clock() - started))
        if len(losses) < FEWEST:
            return None
        seen = counts[: len(losses)]
        groups = GroupGraph.of(chooser, space.free)
        own = groups.counts(chooser.graph, seen)
        step.progress.stage("learn what choices of widths lose")
        chosen = choose(predictors(groups), groups.features(own), losses, seed)
        step.progress.say(_order(chosen, tau(groups.lost_in_all(own), losses)))
        return Model(groups, chosen.predict, own[np.argsort(losses, kind="stable")])

    def _surveyed(self, step: Step, budgets: Budgets) -> tuple[Survey | None, float]:
        """What the dense network's widths may be at the least costs, and how many times those all costs may be."""
        if budgets.has_costs and self.reach is None:
            return _of_budgets(step, budgets)
        for share in _REACHES if self.reach is None else (self.reach, *_REACHES):
            try:
                return survey(step, Shares(macs=share)), 1 / share
            except BudgetError:
                continue
        step.progress.say(f"predictor: no widths come to {_REACHES[-1]:.0%} of the MACs: nothing is learned")
        return None, 1.0


def _of_budgets(step: Step, budgets: Budgets) -> tuple[Survey, float]:
    """Where costs are stated it goes down to them, in steps where weights are trained, else at once."""
    gauge = step.gauge if budgets.is_measured else None
    targets = Targets(budgets, None if gauge is None else gauge(step.dense.program, False))
    found = within_reach(targets, partial(survey, step))
    least = min(share for share in targets.shares.named.values() if share is not None)
    most = 1 / least if step.trains else _MEASURED if targets.goals else 1.0
    return found, min(most, 1 / least)


def predictors(groups: GroupGraph) -> tuple[Predictor, ...]:
    """The kinds of models that are fitted beside one another."""
    return GraphNetwork(groups.wiring), Ridge(), Boosted()


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The choices of the dense network's widths at the alignment in force, and what makes plans of them."""

    space: Space
    chooser: Chooser


def survey(step: Step, shares: Shares) -> Survey:
    """The choices of the dense network's widths at these shares of its costs.

    Raises:
        BudgetError: there are none.
    """
    found: list[Survey] = []

    def look(pruning: Pruning, features: bool) -> None:
        space = Space.of(pruning, features)
        found.append(Survey(space, pruning.chooser))

    step.cutter.planned(step.cutter.dense, shares, allocate=look)
    return found[-1]


def _told(n_measured: int, n_asked: int, seconds: float) -> str:
    told = f"predictor: {n_measured} cuts measured in {seconds:.0f} s"
    if n_measured == n_asked:
        return told
    few = "" if n_measured >= FEWEST else ", too few to learn from"
    return f"{told}, not {n_asked}: the time for it is over{few}; a faster machine may come to other widths"


def _order(chosen: Chosen, of_importance: float) -> str:
    taus = ", ".join(f"{name} {value:.2f}" for name, value in chosen.taus.items())
    return (
        f"predictor: Kendall's tau on choices left out is {taus} (the importance that is lost alone: "
        f"{of_importance:.2f}); {chosen.name} is taken"
    )
