"""The less common forms of every operation, each on a tiny network: movement, contraction."""

from __future__ import annotations

import pytest

from tests.cases_more import CASES
from tests.test_ops import check


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    check(CASES[name])
