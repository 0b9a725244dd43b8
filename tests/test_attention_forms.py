"""Attention in its many forms, each on a tiny network."""

from __future__ import annotations

import pytest

from tests.cases_attention import CASES
from tests.test_ops import check


@pytest.mark.parametrize("name", list(CASES)[::3])
def test_rule(name: str) -> None:
    check(CASES[name])


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_every_rule(name: str) -> None:
    check(CASES[name])
