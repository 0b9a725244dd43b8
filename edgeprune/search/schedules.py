"""How a network comes down to what it may cost: how many cuts there are, how far each goes, what is trained after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

from edgeprune.methods.schedules import LEFT
from edgeprune.search.candidate import Candidate
from edgeprune.search.costs import Costs
from edgeprune.search.landing import Shares
from edgeprune.search.step import FACTOR, Step
from edgeprune.search.trainer import FIRST, Round

_MOST_CUTS = 10  # of one cycle
_ROUND = 0.8  # of what is left, after each round of an iterative pruning


@dataclass(frozen=True, slots=True)
class Leg:
    """One cut and the training after it.

    `shares` of the dense network's costs are aimed at, in a cut that leaves at least `least` of the present ones.
    `may_end` says whether the way ends with it where the costs are reached; what `goes_on` is trained where nothing
    needs to be cut, too. `n_left` is how many legs come after it, None where that follows from `least`.
    """

    shares: Shares
    least: float = 0.0
    training: Round = FIRST
    may_end: bool = True
    goes_on: bool = False
    n_left: int | None = 0


class Schedule(Protocol):
    """The legs of a way down; they never end, and whoever takes them stops where the costs are reached."""

    @property
    def by_cuts(self) -> bool:
        """Whether input features are to go by the same cuts, rather than in a training of their own."""

    def legs(self, costs: Costs, start: Candidate, shares: Shares) -> Iterator[Leg]:
        """From `start` to these shares of the dense network's costs."""


@dataclass(frozen=True, slots=True)
class Stepwise:
    """As many cuts as it takes, none of which takes more than a share; all in one where nothing is judged."""

    least: float = FACTOR
    by_cuts: bool = False

    def legs(self, costs: Costs, start: Candidate, shares: Shares) -> Iterator[Leg]:
        """The same leg again and again."""
        return repeat(Leg(shares, self.least, n_left=None))


@dataclass(frozen=True, slots=True)
class OneShot:
    """One cut, one finetuning: Han et al., Learning both Weights and Connections, 2015."""

    by_cuts: bool = True

    def legs(self, costs: Costs, start: Candidate, shares: Shares) -> Iterator[Leg]:
        """One leg; again where it was not enough."""
        return repeat(Leg(shares))


@dataclass(frozen=True, slots=True)
class Iterative:
    """Rounds that leave four fifths of what the one before left, each with the learning rate rewound.

    Learning rate rewinding: Renda, Frankle and Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning,
    2020. What is left is trained on from its final values, as the last epochs of the dense network's training were.
    """

    by_cuts: bool = True

    def legs(self, costs: Costs, start: Candidate, shares: Shares) -> Iterator[Leg]:
        """As many rounds as it takes, all alike."""
        least = min((share for share in costs.toward(start, shares).named.values() if share is not None), default=1.0)
        n_rounds = max(1, math.ceil(math.log(least) / math.log(_ROUND) - 1e-9))
        training = Round(rewinds=True)
        for number in range(1, n_rounds):
            between = _left(costs, start, shares, "geometric", number / n_rounds)
            yield Leg(between, training=training, n_left=n_rounds - number)
        yield from repeat(Leg(shares, training=training))


@dataclass(frozen=True, slots=True)
class OneCycle:
    """One training in which the network becomes smaller along an S, its learning rate going its way once over all cuts.

    Hubens et al., One-Cycle Pruning, 2021, with cuts in the place of masks: one before each of `n_epochs` epochs, but
    no more than ten.
    """

    n_epochs: int
    by_cuts: bool = True

    def legs(self, costs: Costs, start: Candidate, shares: Shares) -> Iterator[Leg]:
        """One leg a cut; afterwards cuts that are finetuned by themselves, where the last was not enough."""
        n_cuts = min(self.n_epochs, _MOST_CUTS)
        for number in range(1, n_cuts + 1):
            is_last = number == n_cuts
            yield Leg(
                shares if is_last else _left(costs, start, shares, "one-cycle", number / n_cuts),
                training=Round(part=((number - 1) / n_cuts, number / n_cuts)),
                may_end=is_last,
                goes_on=True,
                n_left=n_cuts - number,
            )
        yield from repeat(Leg(shares))


def schedule_of(name: str | None, n_epochs: int) -> Schedule:
    """The schedule of a name, `n_epochs` of which are one finetuning's; that without a name is stepwise."""
    known: Mapping[str | None, Schedule] = {
        None: Stepwise(),
        "one-shot": OneShot(),
        "one-cycle": OneCycle(n_epochs),
        "iterative": Iterative(),
    }
    return known[name]


def legs_left(costs: Costs, candidate: Candidate, leg: Leg) -> int:
    """How many legs come after one that ended in this candidate, as far as can be told."""
    if leg.n_left is not None:
        return leg.n_left
    if not costs.is_over(candidate, leg.shares):
        return 0
    least = min(share for share in costs.toward(candidate, leg.shares).named.values() if share is not None)
    return max(1, math.ceil(math.log(least) / math.log(leg.least) - 1e-9))


def _left(costs: Costs, start: Candidate, shares: Shares, name: str, done: float) -> Shares:
    """What is left of the dense network's costs where so much of the way from `start` to `shares` is done."""
    return costs.between(start, shares, lambda final: LEFT[name](final, done))


def legged(step: Step, best: Candidate, leg: Leg) -> Candidate | None:
    """The network after a leg; None where there is nothing to do in it."""
    costs = step.cutter.costs
    if best.plan is None or costs.is_over(best, leg.shares):
        best = step.pruned(best, costs.toward(best, leg.shares, 0.0 if step.cuts_at_once else leg.least))
    elif not leg.goes_on:
        return None
    else:
        best = best.uncut()
    return step.finetuned(best, leg.training)
