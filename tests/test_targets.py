"""Landing on a measured budget, whatever the model foretells."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from edgeprune.search.candidate import Budgets, Measured
from edgeprune.search.landing import Targets
from edgeprune.units import LatencyLimit

DENSE = Measured(ms=10.0, dense_ms=10.0, size_bytes=1000, dense_bytes=1000)


RUNTIMES: dict[str, Callable[[float], float]] = {
    "as foretold": lambda share: share,
    "an overhead": lambda share: 0.3 + 0.7 * share,
    "better than foretold": lambda share: share**1.6,
    "worse than foretold": lambda share: share**0.5,
    "in stairs": lambda share: math.ceil(share * 25) / 25,
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("limit", [LatencyLimit(ratio=0.5), LatencyLimit(ms=5.0), LatencyLimit(ratio=0.8)])
def test_a_few_trials_land_just_within_the_budget(runtime: str, limit: LatencyLimit) -> None:
    targets = Targets(Budgets(max_latency=limit), DENSE)
    for _ in range(6):
        planned = targets.shares.latency
        assert planned is not None
        found = RUNTIMES[runtime](planned)
        targets.see(Measured(10 * found, 10.0, 500, 1000))
        if targets.is_settled(planned):
            break
        targets.move()
    assert 0.9 <= found / (limit.ratio or 0.5) <= 1.0


def test_where_no_trial_is_near_the_best_within_the_budget_is_taken() -> None:
    targets = Targets(Budgets(max_latency=LatencyLimit(ratio=0.5)), DENSE)
    tried = []
    for found in (0.7, 0.3, 0.6, 0.4, 0.55, 0.35):
        tried.append((targets.shares.latency, found))
        targets.see(Measured(10 * found, 10.0, 500, 1000))
        assert not targets.is_settled(found)
        targets.move()
    targets.settle()
    assert (targets.shares.latency, 0.4) in tried


def test_a_second_budget_that_binds_less_is_left_alone() -> None:
    targets = Targets(Budgets(max_latency=LatencyLimit(ratio=0.5), max_bytes=900), DENSE)
    targets.see(Measured(4.8, 10.0, 400, 1000))
    assert targets.is_settled(macs_share=0.4)
    targets.see(Measured(7.0, 10.0, 400, 1000))
    before = targets.shares.size
    targets.move()
    assert [goal.what for goal in targets.over()] == ["--max-latency 0.5x"]
    assert targets.shares.size == before


def test_macs_that_bind_settle_it() -> None:
    targets = Targets(Budgets(max_latency=LatencyLimit(ratio=0.9), keep_macs=0.5), DENSE)
    targets.see(Measured(4.0, 10.0, 400, 1000))
    assert targets.is_settled(macs_share=0.49)
    assert not targets.is_settled(macs_share=0.3)


def test_nothing_is_measured_where_nothing_is_asked() -> None:
    targets = Targets(Budgets(keep_macs=0.5), None)
    assert targets.goals == {}
    assert targets.is_settled(0.2)
    assert targets.shares.macs == 0.5
