"""Trial cuts that are measured: they end near the budgets, no network is measured twice, and what is kept holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.errors import BudgetError, OutOfReachError
from edgeprune.pruner.measuring import SizeGauge
from edgeprune.search.aiming import Trial, aim, hold
from edgeprune.search.candidate import Budgets, Measured
from edgeprune.search.landing import ENOUGH, Shares, Targets
from edgeprune.units import LatencyLimit

DENSE = Measured(ms=10.0, dense_ms=10.0, size_bytes=1000, dense_bytes=1000)


@dataclass
class Layer:
    """One layer of up to 16 units in a runtime that has an overhead, in steps of `step` units."""

    step: int = 1
    least: int = 0
    noise: float = 0.0  # of a measurement that has to be sure
    seen: list[int] = field(default_factory=list)

    def cut(self, shares: Shares) -> Trial:
        share = min(share for share in (shares.latency, shares.size) if share is not None)
        width = max(int(16 * share / self.step + 1e-9) * self.step, self.least)
        if not width:
            raise BudgetError("its least width is 1")
        return Trial(cast(Any, _Net({"weight": torch.empty(width, 1)})), width / 16)

    def measured(self, program: Any, surely: bool) -> Measured:
        width = len(program.state_dict["weight"])
        self.seen.append(width)
        return Measured(10 * (0.2 + 0.8 * width / 16) + self.noise * surely, 10.0, 1000 * width // 16, 1000)


@dataclass
class _Net:
    state_dict: dict[str, torch.Tensor]


def latency(most: float, **others: Any) -> Targets:
    return Targets(Budgets(max_latency=LatencyLimit(ratio=most), **others), DENSE)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_trials_end_at_the_widest_layer_within_and_measure_each_width_once(step: int) -> None:
    layer, targets = Layer(step), latency(0.62)
    aim(targets, layer.measured, layer.cut)
    assert layer.cut(targets.shares).macs_share * 16 == 8  # 0.6 of the time; the next of any step takes more
    assert len(layer.seen) == len(set(layer.seen)) <= 5


def test_a_budget_that_asks_for_nothing_is_measured_once() -> None:
    layer, targets = Layer(), Targets(Budgets(max_bytes=5000), DENSE)
    aim(targets, layer.measured, layer.cut)
    assert layer.seen == [16] and targets.shares.size == 1


def test_the_best_of_all_trials_holds_every_budget() -> None:
    layer, targets = Layer(4), latency(0.95, max_bytes=760)
    aim(targets, layer.measured, layer.cut)
    assert layer.cut(targets.shares).macs_share == 12 / 16


def test_what_is_kept_holds_where_it_is_slower_than_its_trial() -> None:
    layer, targets = Layer(noise=0.7), latency(0.6)
    aim(targets, layer.measured, layer.cut)
    first = layer.cut(targets.shares)
    hold(targets, layer.measured, first, layer.cut)
    kept = layer.cut(targets.shares)
    assert kept.macs_share < first.macs_share
    assert ENOUGH * 0.6 < layer.measured(kept.program, True).ms / 10 <= 0.6


def test_what_cannot_be_held_says_what_stands_in_the_way() -> None:
    layer, targets = Layer(noise=5.0), latency(0.4)
    with pytest.raises(BudgetError, match=r"^--max-latency 0.4x: its least width is 1$"):
        hold(targets, layer.measured, layer.cut(targets.shares), layer.cut)


def test_what_cannot_be_held_says_how_near_the_last_came() -> None:
    layer, targets = Layer(least=1, noise=2.5), latency(0.4)
    with pytest.raises(
        BudgetError, match=r"the closest network, at 6.2% of the MACs, has --max-latency 0.4x: 1.25 times"
    ):
        hold(targets, layer.measured, layer.cut(targets.shares), layer.cut)
    assert layer.seen.count(1) == 1


@dataclass
class Narrowest(Layer):
    """One that cannot be planned below 10 of its 16 units: the planner says how far off that is."""

    def cut(self, shares: Shares) -> Trial:
        share = min(share for share in (shares.latency, shares.size) if share is not None)
        if share < 10 / 16:
            cost = "latency" if shares.latency == share else "size"
            raise OutOfReachError(f"{share} is too little", "in the way: it", cost, 10 / 16 / share)
        return super().cut(shares)


@pytest.mark.parametrize("most", [0.7, 0.71, 0.72])  # at 10 units it takes 0.7 of the time, and 0.96 of that is below
def test_what_is_within_the_budget_is_found_where_what_is_aimed_at_cannot_be_planned(most: float) -> None:
    layer, targets = Narrowest(), latency(most)
    aim(targets, layer.measured, layer.cut)
    first = layer.cut(targets.shares)
    hold(targets, layer.measured, first, layer.cut)
    assert first.macs_share == 10 / 16


def test_two_budgets_are_each_brought_to_the_least_that_can_be_planned() -> None:
    layer, targets = Narrowest(), latency(0.71, max_bytes=640)
    aim(targets, layer.measured, layer.cut)
    assert layer.cut(targets.shares).macs_share == 10 / 16


@pytest.mark.parametrize("sure", [False, True])
def test_what_is_refused_is_what_was_measured(sure: bool) -> None:
    layer, targets = Narrowest(noise=1.0), latency(0.75 if sure else 0.68)
    told = r"at 62.5% of the MACs, has --max-latency 0.\d+x: 1.\d\d times that; in the way: it; allow more$"
    with pytest.raises(BudgetError, match=told):
        aim(targets, layer.measured, layer.cut)
        hold(targets, layer.measured, layer.cut(targets.shares), layer.cut)
    assert layer.seen.count(10) == 1


def test_a_pruner_that_has_all_that_it_needs_measures_the_dense_network_and_one_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []
    once = SizeGauge.__call__

    def counted(self: SizeGauge, program: Any, surely: bool) -> Measured:
        found = once(self, program, surely)
        measured.append(found.size_bytes)
        return found

    monkeypatch.setattr(SizeGauge, "__call__", counted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    edgeprune.Pruner(model, torch.randn(2, 8), keep_macs=0.5, max_size="1MB", steps=1, align=1)
    assert len(measured) == 2 and measured[1] < measured[0]
