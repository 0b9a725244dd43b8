"""Normalisation, pooling and resampling, each on a tiny network."""

from __future__ import annotations

import pytest

from tests.cases_layers import CASES
from tests.test_ops import check


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    check(CASES[name])
