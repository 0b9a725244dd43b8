"""Prox maps: how much of a group is left after a step of a penalty, by the group's norm alone.

Each gives the factor that the group's weights are multiplied with, exactly 0 where the group vanishes. For a group of
one element the norm is its absolute value and the prox map the scalar one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.optim.checks import POSITIVE, check_range


class Prox(Protocol):
    """The prox map of `amount * penalty(norm)`."""

    @property
    def name(self) -> str:
        """What the options and a state dict call it."""

    def factor(self, norms: Tensor, amount: float | Tensor) -> Tensor:
        """The share of each norm that is left.

        Args:
            norms: of the groups, any shape, 0 or more.
            amount: step times strength, above 0; a number or a tensor that broadcasts to `norms`.
        """


@dataclass(frozen=True, slots=True)
class Lasso:
    """`amount * norm`: soft threshold (Tibshirani 1996)."""

    name = "l1"

    def factor(self, norms: Tensor, amount: float | Tensor) -> Tensor:
        """max(1 - amount / norm, 0)."""
        return (1 - amount / norms).clamp_(min=0)


@dataclass(frozen=True, slots=True)
class GroupLasso(Lasso):
    """`amount * norm` of whole groups: block soft threshold (Yuan and Lin 2006)."""

    name = "group-lasso"


@dataclass(frozen=True, slots=True)
class LogPenalty:
    """`amount * log(1 + norm / eps)`: bends off, so that large groups are hardly shrunk (Candes, Wakin and Boyd 2008).

    The x that minimises (x - n)^2 / 2 + amount log(1 + x / eps) is 0 or the larger root of
    x^2 + (eps - n) x + amount - n eps = 0, whichever is lower (Gong et al., GIST, ICML 2013). It is 0 up to a norm that
    depends on `amount` and `eps` alone.
    """

    eps: float = 0.01
    name = "log"

    def __post_init__(self) -> None:
        check_range("eps", self.eps, POSITIVE)

    def factor(self, norms: Tensor, amount: float | Tensor) -> Tensor:
        """The larger root over the norm, or 0 below the threshold."""
        inside = (norms + self.eps).square_() - 4 * amount
        root = inside.clamp_(min=0).sqrt_().add_(norms).sub_(self.eps).div_(2)
        return torch.where(norms > self._threshold(amount), root / norms, 0.0)

    def _threshold(self, amount: float | Tensor) -> float | Tensor:
        if not isinstance(amount, Tensor):
            return log_threshold(amount, self.eps)
        values, place = amount.unique(return_inverse=True)  # few: groups of one size have one amount
        return amount.new_tensor([log_threshold(value, self.eps) for value in values.tolist()])[place]


def log_threshold(amount: float, eps: float) -> float:
    """The norm up to which the log penalty's prox map is 0.

    With amount <= eps^2 the objective is convex and its slope at 0, amount / eps - n, decides. Else the map jumps from
    0 to the x where both candidates are equal, amount (log(1 + x / eps) - x / (x + eps)) = x^2 / 2, at
    n = x + amount / (x + eps).
    """
    if amount <= eps * eps:
        return amount / eps

    def zero_is_worse(x: float) -> bool:
        return amount * (math.log1p(x / eps) - x / (x + eps)) > x * x / 2

    low, high = 0.0, eps
    while zero_is_worse(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if zero_is_worse(middle) else (low, middle)
    return high + amount / (high + eps)


PENALTIES = ("group-lasso", "l1", "log")


def prox_of(penalty: str, eps: float) -> Prox:
    """The prox map of a name.

    Raises:
        InputError: none of `PENALTIES`, or `eps` not above 0 for log.
    """
    if penalty == "log":
        return LogPenalty(eps)
    for prox in (Lasso(), GroupLasso()):
        if prox.name == penalty:
            return prox
    raise InputError(f"penalty: expected {', '.join(PENALTIES)}, got {penalty!r}")
