"""Random networks: none is cut wrong, none makes edgeprune fall over, few are refused, no cut is an empty one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.random_checks import Outcome, layers_of, tried

MOST_REFUSED = MOST_VACUOUS = 0.05


def check_shares(found: list[Outcome]) -> None:
    counts = Counter(outcome.kind for outcome in found)
    cut = len(found) - counts["refused"]
    assert counts["wrong"] == counts["crashed"] == 0
    assert counts["refused"] < MOST_REFUSED * len(found), [o.reason for o in found if o.kind == "refused"]
    assert counts["vacuous"] < MOST_VACUOUS * cut
    assert sum(outcome.n_features > 0 for outcome in found) > len(found) / 10
    assert sum(outcome.inexact for outcome in found) > len(found) / 20


def test_sixty_networks() -> None:
    found: list[Outcome] = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 10**6), n_layers=st.integers(3, 16))
    def each(seed: int, n_layers: int) -> None:
        outcome = tried(seed, n_layers)
        assert outcome.kind in ("right", "vacuous", "refused"), outcome
        found.append(outcome)

    each()
    assert len(found) >= 60
    check_shares(found)


@pytest.mark.sweep
def test_a_thousand_networks() -> None:
    check_shares([tried(seed, layers_of(seed)) for seed in range(1000)])
