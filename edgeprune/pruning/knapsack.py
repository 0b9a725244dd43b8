"""Which widths all groups have together so that the measured losses add up to the least within the budgets: a knapsack.

Costs are sums of products of two widths, mostly: what a convolution reads, and what it gives. A variable for each pair
of them makes that linear, so that a solver of mixed-integer programs finds the best choice of all, not a good one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from edgeprune.cost.limits import Limit
from edgeprune.cost.models import CostModel, Dim
from edgeprune.errors import BudgetError
from edgeprune.pruning.choosing import Chooser, Pruning

_STEEP = 4.0  # how much faster than on the last stretch the loss is taken to rise below the narrowest width measured
_CHOICES = 9  # widths of a group at most, where there are many groups
_FEW = 12  # groups
_SECONDS = 60.0  # of the solver: after them the best choice that it has found
_SLACK = 1e-6  # of a budget: what the solver may be off by
_ROUNDS = 8  # for costs that are not sums of products
_TIE = 1e-6  # of the largest loss: what a whole group is worth where nothing is lost without it

Table = dict[tuple[int, ...], np.ndarray]  # groups -> a part of a cost at each choice of their widths


@dataclass(frozen=True, slots=True)
class Curve:
    """What the loss rises by where so many units of a group stay: measured at these `counts`, ascending."""

    counts: tuple[int, ...]
    rises: tuple[float, ...]

    def at(self, counts: np.ndarray) -> np.ndarray:
        """The rise at any counts, float64 of the same shape: never falling with the width, and none below zero."""
        rises = np.maximum.accumulate(np.clip(self.rises[::-1], 0.0, None))[::-1]
        found = np.interp(counts, self.counts, rises)
        if len(self.counts) > 1:
            slope = (rises[0] - rises[1]) / (self.counts[1] - self.counts[0])
            found = found + _STEEP * slope * np.clip(self.counts[0] - counts, 0, None)
        return np.asarray(found, dtype=float)


def allot(chooser: Chooser, limits: Sequence[Limit], losses: Mapping[int, Curve], eligible: Sequence[int]) -> None:
    """Give the eligible groups of which a loss is known the widths that lose the least within the limits.

    What an input feature loses counts as the less, the dearer it is: by its price, where it has one.

    Raises:
        BudgetError: the narrowest widths are over a limit; says which one, and what stands in the way.
    """
    free = [g for g in eligible if g in losses]
    choices = [np.array([int(count)]) for count in chooser.counts]
    for g in free:
        choices[g] = _widths(chooser, g, _CHOICES if len(free) > _FEW else 4 * _CHOICES)
    _check_narrowest(chooser, limits, choices, free)
    known = [_rises(chooser, g, losses[g])[own] if g in losses else np.zeros(1) for g, own in enumerate(choices)]
    problem = _Problem(choices, known)
    chooser.counts[:] = _within(problem, limits, [_table(limit.model, choices) for limit in limits])


def _rises(chooser: Chooser, group: int, curve: Curve) -> np.ndarray:
    """What a group loses at each count, `(n_units + 1,)`: what each unit adds as it goes, divided by its price."""
    rises = curve.at(np.arange(chooser.graph.groups[group].n_units + 1))
    prices = chooser.graph.price_factors()[group]
    if (prices == 1).all():
        return rises
    added = -np.diff(rises)[::-1] / prices[chooser.orders[group]]
    return rises[-1] + np.concatenate([[0.0], np.cumsum(added)])[::-1]


def _within(problem: _Problem, limits: Sequence[Limit], tables: Sequence[Table]) -> np.ndarray:
    """The counts of the least loss within the limits; less is asked for where a table falls short of its cost."""
    most, over = [limit.most for limit in limits], 0.0
    for _ in range(_ROUNDS):
        counts = problem.solved(tables, most)
        ratios = [limit.model.cost(counts) / limit.most for limit in limits]
        over = max(ratios)
        if over <= 1:
            return counts
        most = [bound / max(1.0, ratio) for bound, ratio in zip(most, ratios, strict=True)]
    named = " and ".join(f"{limit.share:.3g} of {limit.what}" for limit in limits)
    raise BudgetError(f"the knapsack: expected widths within {named}, got {over:.3g} times that")


def _check_narrowest(
    chooser: Chooser, limits: Sequence[Limit], choices: Sequence[np.ndarray], free: Sequence[int]
) -> None:
    """Raise BudgetError where all groups at their narrowest are over a limit: nothing else is cheaper."""
    whole = chooser.counts.copy()
    chooser.counts[:] = [widths.min() for widths in choices]
    if any(limit.excess(limit.model.cost(chooser.counts)) > 0 for limit in limits):
        raise Pruning(chooser, limits, None, False, free).in_the_way()
    chooser.counts[:] = whole


def _widths(chooser: Chooser, group: int, most: int) -> np.ndarray:
    """The counts that a group may have, descending: so many of them at most, evenly, the widest and the narrowest."""
    count, step = int(chooser.counts[group]), chooser.steps[group]
    lower = range((count - 1) // step * step, max(1, chooser.floors[group]) - 1, -step)
    found = np.array([count, *lower])
    return found[np.unique(np.linspace(0, len(found) - 1, most).round().astype(int))]


# -- costs as sums of products ------------------------------------------------------------------------------------


def _table(model: CostModel, choices: Sequence[np.ndarray]) -> Table:
    """The cost at all choices: the sum of the tables, that of no group included, for what no choice changes."""
    found: Table = {}
    for product in model.products:
        for parts in itertools.product(*(list(_parts(dim, choices)) for dim in product.dims)):
            groups = tuple(sorted({g for g, share in parts if g is not None and len(share) > 1}))
            found[groups] = found.get(groups, 0.0) + float(product.base) * _outer(parts, groups, choices)
    return found


def _outer(
    parts: Sequence[tuple[int | None, np.ndarray]], groups: tuple[int, ...], choices: Sequence[np.ndarray]
) -> np.ndarray:
    """The product of shares over the choices of several groups, one dim for each."""
    value = np.ones([len(choices[g]) for g in groups])
    for g, share in parts:
        value = value * share.reshape([len(share) if g == other else 1 for other in groups])
    return value


def _parts(dim: Dim, choices: Sequence[np.ndarray]) -> Iterator[tuple[int | None, np.ndarray]]:
    """A share of a cost as a sum: what is fixed, and what goes with one group each, at its choices.

    The stairs of a device under several groups are no such sum: they are taken for a slope.
    """
    if dim.relative is not None and len(dim.kept) < 2:
        at = np.arange(dim.size + 1)
        for g, kept in dim.kept.items():
            yield g, np.interp(dim.fixed + kept[choices[g]], at, dim.relative)
        if not dim.kept:
            yield None, np.interp([float(dim.fixed)], at, dim.relative)
        return
    yield None, np.array([dim.fixed / dim.size])
    for g, kept in dim.kept.items():
        yield g, kept[choices[g]] / dim.size


# -- the program --------------------------------------------------------------------------------------------------


class _Problem:
    """A choice of one width for each group, `choices[g]`, at a loss `losses[g]` each."""

    def __init__(self, choices: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> None:
        self.choices = choices
        self.starts = np.cumsum([0, *(len(widths) for widths in choices)])
        tie = _TIE * max(1e-9, *(float(own.max()) for own in losses))
        self.losses = np.concatenate(
            [own + tie * (1 - widths / widths.max()) for own, widths in zip(losses, choices, strict=True)]
        )

    def solved(self, tables: Sequence[Table], most: Sequence[float]) -> np.ndarray:
        """The count of each group at the least loss, every cost being at most so much.

        Raises:
            BudgetError: the solver finds nothing in its time.
        """
        joint = dict.fromkeys(groups for table in tables for groups in table if len(groups) > 1)
        sizes = [self._size(groups) for groups in joint]
        starts = self.starts[-1] + np.cumsum([0, *sizes])
        place: dict[tuple[int, ...], int] = {(g,): int(start) for g, start in enumerate(self.starts[:-1])}
        place |= {groups: int(start) for groups, start in zip(joint, starts, strict=False)}
        rows = _Rows(int(starts[-1]))
        for g, widths in enumerate(self.choices):
            rows.add(self.starts[g] + np.arange(len(widths)), np.ones(len(widths)), 1.0, 1.0)
        for groups in joint:
            self._join(rows, groups, place[groups])
        for table, bound in zip(tables, most, strict=True):
            _bound(rows, table, bound, place)
        return self._chosen(rows)

    def _size(self, groups: tuple[int, ...]) -> int:
        return math.prod(len(self.choices[g]) for g in groups)

    def _join(self, rows: _Rows, groups: tuple[int, ...], start: int) -> None:
        """What stands for pairs of choices, summed over all others, is the choice of the one."""
        numbers = start + np.arange(self._size(groups)).reshape([len(self.choices[g]) for g in groups])
        for axis, g in enumerate(groups):
            for k, of_one in enumerate(np.moveaxis(numbers, axis, 0)):
                columns = np.append(of_one.ravel(), self.starts[g] + k)
                rows.add(columns, np.append(np.ones(of_one.size), -1.0), 0.0, 0.0)

    def _chosen(self, rows: _Rows) -> np.ndarray:
        from scipy.optimize import (  # here, because importing it takes a sixth of a second
            Bounds,
            LinearConstraint,
            milp,
        )

        losses = np.zeros(rows.n_columns)
        losses[: len(self.losses)] = self.losses / max(float(self.losses.max()), 1e-30)
        whole = np.arange(rows.n_columns) < len(self.losses)
        found = milp(
            losses,
            integrality=whole.astype(int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(*rows.bounded()),
            options={"time_limit": _SECONDS, "mip_rel_gap": 1e-4},
        )
        if found.x is None:
            raise BudgetError(f"the knapsack: expected widths within the budgets, got none ({found.message})")
        picked = np.split(found.x[: len(self.losses)], self.starts[1:-1])
        return np.array([widths[int(np.argmax(own))] for widths, own in zip(self.choices, picked, strict=True)])


def _bound(rows: _Rows, table: Table, most: float, place: Mapping[tuple[int, ...], int]) -> None:
    """A cost is at most so much; what its groups choose stands from `place` on."""
    own = {groups: value.ravel() for groups, value in table.items() if groups}
    fixed = float(np.sum(table.get((), 0.0)))
    if own:
        columns = [place[groups] + np.arange(value.size) for groups, value in own.items()]
        values = np.concatenate(list(own.values())) / most
        rows.add(np.concatenate(columns), values, -np.inf, 1 - fixed / most - _SLACK)


class _Rows:
    """The rows of a sparse matrix, each with its bounds."""

    def __init__(self, n_columns: int) -> None:
        self.n_columns = n_columns
        self._columns: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._bounds: list[tuple[float, float]] = []

    def add(self, columns: np.ndarray, values: np.ndarray, low: float, high: float) -> None:
        """One more row."""
        self._columns.append(columns)
        self._values.append(values)
        self._bounds.append((low, high))

    def bounded(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """All of them as a sparse matrix, and the bounds of each, from below and above."""
        numbers = np.repeat(np.arange(len(self._columns)), [len(columns) for columns in self._columns])
        places = (numbers, np.concatenate(self._columns))
        matrix = coo_array((np.concatenate(self._values), places), shape=(len(self._columns), self.n_columns))
        low, high = np.array(self._bounds).T
        return matrix.tocsr(), low, high
