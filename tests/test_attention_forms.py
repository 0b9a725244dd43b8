"""Attention in its many forms, each on a tiny network."""

from __future__ import annotations

import pytest

from tests.cases_attention import CASES
from tests.test_ops import check


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    check(CASES[name])
