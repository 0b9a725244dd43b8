"""What processes share out comes to what one of them has alone; nothing runs at once here."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.data import Share, normalize, order
from edgeprune.data.ranks import ALONE, Ranks, check_same, in_order
from edgeprune.errors import InputError
from edgeprune.graph.capture import capture
from edgeprune.importance import score
from edgeprune.importance.activation import Batches
from edgeprune.pruning.surgery import cut
from edgeprune.reconstruction.reconstruct import Reconstructed, reconstructed
from edgeprune.records import DataSource
from edgeprune.training import recalibrate

T = TypeVar("T")


class NotYet(Exception):
    """A process has come to where it meets others that have not come so far."""


@dataclass(frozen=True, eq=False)
class Stepping:
    """One of several processes that are run one after the other, each time as far as the others have come.

    `met` is what each of them brought to where they meet, time after time.
    """

    share: Share
    met: list[dict[int, Any]]
    n_met: Iterator[int] = field(default_factory=itertools.count)

    def gathered(self, rows: list[Any]) -> list[Any]:
        return [row for part in self._met(rows) for row in part]

    def summed(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._met(tensor)).sum(0)

    def _met(self, own: Any) -> list[Any]:
        number = next(self.n_met)
        if number == len(self.met):
            self.met.append({})
        there = self.met[number]
        there[self.share.rank] = own
        if len(there) < self.share.n_ranks:
            raise NotYet
        return [there[rank] for rank in range(self.share.n_ranks)]


def together(n: int, work: Callable[[Ranks], T]) -> list[T]:
    """What each of `n` processes makes of the same work, which may be begun again at any time."""
    met: list[dict[int, Any]] = []
    done: dict[int, T] = {}
    while len(done) < n:
        for rank in range(n):
            with contextlib.suppress(NotYet):
                done[rank] = work(Stepping(Share(rank, n), met))
    return [done[rank] for rank in range(n)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def test_parts_come_back_in_their_order() -> None:
    parts = [torch.tensor([number]) for number in range(5)]
    assert [[int(part) for part in Share(rank, 2).in_turn(parts)] for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    for n in (2, 3, 7):  # of seven processes two have none
        found = together(n, lambda ranks: [int(x) for x in in_order(ranks, ranks.share.in_turn(parts))])
        assert found == [[0, 1, 2, 3, 4]] * n


@pytest.mark.parametrize("criterion", ["taylor", "outgoing", "activation"])
def test_scores_are_those_of_one_process(digits: DataSource, criterion: str) -> None:
    """To the last bit where batches are added up one by one, as by rounding a plan could come out otherwise."""
    program = capture(net(), torch.zeros(2, 1, 8, 8))
    graph = edgeprune.analyze(program)
    chosen = order(len(digits.train), 16, shuffle=True)[:3]  # type: ignore[arg-type]
    inputs = [digits.train.take(index) for index in chosen]  # type: ignore[attr-defined]
    batches: list[tuple[Any, Any]] = [(normalize(x, digits.normalization), y) for x, y in inputs]

    def scores(ranks: Ranks) -> list[np.ndarray]:
        own: Batches = batches[ranks.share.rank :: ranks.share.n_ranks]
        return score(program, graph, criterion, batches=own, ranks=ranks)

    alone = scores(ALONE)
    for n in (2, 4):
        for found in together(n, scores):
            for mine, theirs in zip(alone, found, strict=True):
                np.testing.assert_allclose(theirs, mine, rtol=1e-13 if criterion == "activation" else 0)


@pytest.mark.parametrize("n", [2, 5])
def test_statistics_are_those_of_one_process(digits: DataSource, n: int) -> None:
    """Of three batches two of five processes have none."""

    def statistics(ranks: Ranks) -> dict[str, Tensor]:
        module = copy.deepcopy(net())
        assert recalibrate(module, digits, digits.normalization, n_batches=3, ranks=ranks) == 2
        return module.state_dict()

    alone = statistics(ALONE)
    assert not torch.equal(alone["1.running_mean"], net().state_dict()["1.running_mean"])
    for found in together(n, statistics):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


def test_processes_that_differ_are_refused_in_all_of_them() -> None:
    def refused(ranks: Ranks) -> str:
        check_same(ranks, lambda: {"seed": 0}, "the options of")
        with pytest.raises(InputError) as caught:
            check_same(ranks, lambda: {"seed": 0, "data": ranks.share.rank // 2}, "the options of")
        return str(caught.value)

    [line] = set(together(3, refused))
    assert line == "process 2: expected the options of process 0; data: expected 0, got 1"
    check_same(ALONE, lambda: pytest.fail("nobody to compare with"), "the options of")


def test_reconstruction_is_that_of_one_process() -> None:
    """Pieces of samples are shared out, and the moments of their rows summed; batch norms move as they do alone."""
    program = capture(net(), torch.zeros(2, 1, 8, 8))
    plan = edgeprune.plan(program, edgeprune.analyze(program), 0.6, "l2", 1)
    slim = cut(program, plan)
    x = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def solved(ranks: Ranks) -> Reconstructed:
        return reconstructed(program, slim, plan, [x], ranks=ranks)

    alone = solved(ALONE)
    assert alone.record.helps
    for found in together(2, solved):
        assert found.record.outputs_after == pytest.approx(alone.record.outputs_after, rel=1e-5)
        for name, value in alone.program.state_dict.items():
            torch.testing.assert_close(found.program.state_dict[name], value, rtol=1e-5, atol=1e-6)
