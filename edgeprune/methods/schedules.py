"""How the share of zeros grows: from the share of the training that is done, in [0, 1], to that of the final zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

_START, _STOP = 0.1, 0.75  # of the training: a network that has begun to learn, and time to settle
_HALF = 0.5
_ALPHA, _BETA = 14.0, 6.0


def one_shot(done: float) -> float:
    """Everything at once at half of the training; the rest is finetuning (Han et al., NeurIPS 2015)."""
    return float(done >= _HALF)


def linear(done: float) -> float:
    """Evenly between 10 and 75 % of the training."""
    return min(1.0, max(0.0, (done - _START) / (_STOP - _START)))


def cubic(done: float) -> float:
    """Fast at first and ever slower: 1 - (1 - x)^3 between 10 and 75 % of the training.

    Automated gradual pruning: Zhu and Gupta, To Prune, or Not to Prune, 2017, equation 1.
    """
    return slowing(linear(done))


def slowing(done: float) -> float:
    """1 - (1 - x)^3."""
    return 1.0 - (1.0 - done) ** 3


def one_cycle(done: float) -> float:
    """From the first step to the last, steepest before the middle: (1 + e^(b - a)) / (1 + e^(b - a x)), a = 14, b = 6.

    Hubens et al., One-Cycle Pruning, 2021, with b as in fasterai, their library; the page of its own code has 5.
    It is 0.2 % at the very start.
    """
    return (1 + math.exp(_BETA - _ALPHA)) / (1 + math.exp(_BETA - _ALPHA * done))


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "one-shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "one-cycle": one_cycle,
}
# What is left of a cost when a part of the way is done, in [0, 1], where `final` is left in the end.
LEFT: Mapping[str, Callable[[float, float], float]] = {
    "geometric": lambda final, done: final**done,
    "linear": lambda final, done: 1 - (1 - final) * done,
    "cubic": lambda final, done: 1 - (1 - final) * slowing(done),
    "one-cycle": lambda final, done: 1 - (1 - final) * one_cycle(done),
}
