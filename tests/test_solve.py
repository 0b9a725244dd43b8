"""The union-find behind the labels."""

from __future__ import annotations

import numpy as np
import torch

from edgeprune.graph.solve import Reason, Solver, count_units


def reason(message: str) -> Reason:
    return Reason(message, "node")


def test_united_units_are_one() -> None:
    solver = Solver()
    a, b, c = (torch.from_numpy(solver.fresh(3)) for _ in range(3))
    solver.unite(a, b, reason("a and b"))
    solver.unite(b, c, reason("b and c"))
    assert solver.merge()
    assert solver.canonical.tolist() == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    assert not solver.merge()


def test_a_lock_reaches_the_whole_component_and_the_first_reason_stays() -> None:
    solver = Solver()
    a, b = (torch.from_numpy(solver.fresh(2)) for _ in range(2))
    solver.lock(a[:1], reason("first"))
    assert solver.merge()
    solver.lock(b, reason("second"))
    solver.unite(a, b, reason("join"))
    assert solver.merge()
    assert solver.canonical.tolist() == [0, 0, 0, 0, 0]
    why = solver.reason[solver.component[np.array([1, 2, 3, 4])]]
    assert [solver.reasons[i].message for i in why] == ["first", "second", "first", "second"]


def test_label_zero_locks_what_it_meets() -> None:
    solver = Solver()
    a = torch.from_numpy(solver.fresh(3))
    solver.unite(a, torch.tensor([0, 2, 3]), reason("meets a fixed element"))
    assert solver.merge()
    assert solver.canonical.tolist() == [0, 0, 2, 3]


def test_pending_labels_say_nothing() -> None:
    solver = Solver()
    a = torch.from_numpy(solver.fresh(2))
    solver.unite(a, torch.tensor([-1, -2]), reason("not known yet"))
    solver.lock(torch.tensor([-1, -2]), reason("not known yet"))
    assert not solver.merge()


def test_count_units() -> None:
    grid = np.arange(1, 13).reshape(3, 4)
    assert (count_units(grid, 0), count_units(grid, 1)) == (3, 4)
    grid[0, 0] = 0  # a fixed element takes its row and its column
    assert (count_units(grid, 0), count_units(grid, 1)) == (2, 3)
    grid[1, 1] = grid[2, 1] = 50  # rows that share a label are one
    assert (count_units(grid, 0), count_units(grid, 1)) == (1, 3)
