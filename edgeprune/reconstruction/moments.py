"""Second moments of rows, and the ridge regression that they are all that is needed for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.data.ranks import Ranks

_RIDGES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)  # times the mean variance of the inputs
_LARGE = 1000  # unknowns, from which on every other one is tried
_PATIENCE = 2  # how many in a row may do worse before no lower one is tried
_TIE = 1e-13  # of the error before: what rounding alone decides


@dataclass(slots=True, eq=False)
class Moments:
    """Sums over `n` rows of inputs x `(groups, n_in)` and of what is missing r `(groups, n_out)`, in float64.

    `missing` is the sum of the squares of r.
    """

    xx: Tensor
    xr: Tensor
    x: Tensor
    r: Tensor
    missing: float = 0.0
    n: int = 0

    @classmethod
    def none(cls, groups: int, n_in: int, n_out: int) -> Moments:
        """Of no rows."""
        inputs, outputs = (
            torch.zeros(groups, n_in, dtype=torch.float64),
            torch.zeros(groups, n_out, dtype=torch.float64),
        )
        return cls(inputs.new_zeros(groups, n_in, n_in), inputs.new_zeros(groups, n_in, n_out), inputs, outputs)

    def add(self, x: Tensor, r: Tensor) -> None:
        """Rows `(n, groups, n_in)` and `(n, groups, n_out)`, in float64."""
        by_group = x.transpose(0, 1)
        self.xx.baddbmm_(by_group.mT, by_group)
        self.xr.baddbmm_(by_group.mT, r.transpose(0, 1))
        self.x += x.sum(0)
        self.r += r.sum(0)
        self.missing += float(r.square().sum())
        self.n += len(x)

    def plus(self, other: Moments) -> Moments:
        """Of both."""
        return Moments(
            self.xx + other.xx,
            self.xr + other.xr,
            self.x + other.x,
            self.r + other.r,
            self.missing + other.missing,
            self.n + other.n,
        )

    def of_all(self, ranks: Ranks) -> Moments:
        """The sums over the rows of all processes, the same on each of them."""
        if ranks.share.n_ranks == 1:
            return self
        missing, n = ranks.summed(torch.tensor([self.missing, self.n], dtype=torch.float64)).tolist()
        xx, xr, x, r = (ranks.summed(part) for part in (self.xx, self.xr, self.x, self.r))
        return Moments(xx, xr, x, r, missing, int(n))

    @property
    def is_finite(self) -> bool:
        """Whether no sum has overflowed or is NaN."""
        return all(bool(part.isfinite().all()) for part in (self.xx, self.xr, self.x, self.r))


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What to add to a reader: to its matrix `(groups, n_in, n_out)` and to its bias `(groups, n_out)`."""

    matrix: Tensor
    bias: Tensor

    def error(self, rows: Moments) -> float:
        """What is still missing on rows: the mean over them of the sum of squares."""
        d, b = self.matrix, self.bias
        explained = 2 * (d * rows.xr).sum() - (d * (rows.xx @ d)).sum()
        left = rows.r - (rows.x.unsqueeze(1) @ d).squeeze(1)
        error = rows.missing - explained - 2 * (b * left).sum() + rows.n * b.square().sum()
        return max(0.0, float(error)) / max(1, rows.n)


def no_change(rows: Moments) -> Change:
    """None at all."""
    return Change(torch.zeros_like(rows.xr), torch.zeros_like(rows.r))


def ridge(rows: Moments, penalty: float, centred: bool, rounding: float = 0.0) -> Change | None:
    """The change with the least error plus `penalty` times the mean variance of the inputs times its squares.

    With the penalty on the change, weights that need none are left alone. None where it cannot be solved. What varies
    by no more than `rounding` of its mean square counts as constant, of which nothing can be learnt: kernels round
    the rows of a batch differently.
    """
    n = max(1, rows.n)
    xx, xr = rows.xx / n, rows.xr / n
    x, r = rows.x / n, rows.r / n
    if centred:
        xx = xx - x.unsqueeze(2) * x.unsqueeze(1)
        xr = xr - x.unsqueeze(2) * r.unsqueeze(1)
    variance, size = xx.diagonal(dim1=1, dim2=2), rows.xx.diagonal(dim1=1, dim2=2) / n
    varies = (variance > rounding * size) & (variance.mean(1) > rounding * size.mean(1)).unsqueeze(1)
    xx, xr = xx * (varies.unsqueeze(2) & varies.unsqueeze(1)), xr * varies.unsqueeze(2)
    scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0)
    weight = torch.where(scale > 0, penalty * scale, 1.0)
    xx = xx + torch.diag_embed(weight.unsqueeze(1).expand(xx.shape[:2]))
    factor, failed = torch.linalg.cholesky_ex(xx)
    if bool(failed.any()):
        return None
    matrix = torch.cholesky_solve(xr, factor)
    bias = r - (x.unsqueeze(1) @ matrix).squeeze(1) if centred else torch.zeros_like(r)
    return Change(matrix, bias)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A change, and the error `before` and `after` it on rows held out; no change where none does better.

    `penalty` is the one that it was solved with.
    """

    change: Change
    penalty: float
    before: float
    after: float

    @property
    def helps(self) -> bool:
        """Whether anything is changed."""
        return self.after < self.before


def solved(fit: Moments, held: Moments, centred: bool, rounding: float = 0.0) -> Solution:
    """The change whose penalty does best on rows that it was not solved on, solved then on all of them.

    `rounding` is the share of its mean square that a value varies by when nothing but its last bits do.
    """
    nothing = no_change(fit)
    before = nothing.error(held)
    best = _helpful(_best(fit, held, centred, before, rounding), nothing)
    whole = ridge(fit.plus(held), best.penalty, centred, rounding) if best.helps else None
    return best if whole is None else Solution(whole, best.penalty, best.before, best.after)


def _best(fit: Moments, held: Moments, centred: bool, before: float, rounding: float) -> Solution:
    """Penalties from high to low, as far as they help; where rounding alone decides, the lowest."""
    best, n_worse = Solution(no_change(fit), math.inf, before, before), 0
    for penalty in _RIDGES[:: 2 if fit.xx.shape[1] > _LARGE else 1]:
        change = ridge(fit, penalty, centred, rounding)
        if change is None:
            break
        error = change.error(held)
        if error < best.after + _TIE * before:
            best, n_worse = Solution(change, penalty, before, min(error, best.after)), 0
        else:
            n_worse += 1
        if n_worse == _PATIENCE:
            break
    return best


def _helpful(found: Solution, nothing: Change) -> Solution:
    return found if found.helps else Solution(nothing, math.inf, found.before, found.before)
