"""What a search says after each step, and how much is left."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from edgeprune.progress import Silent
from edgeprune.records import ACCURACY
from edgeprune.results import StepRecord
from edgeprune.search.effort import Effort
from edgeprune.search.telling import Teller


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.figures: list[Mapping[str, float]] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def measured(self, figures: Mapping[str, float]) -> None:
        self.figures.append(figures)


def told(step: StepRecord, n_left: int | None, seconds: float, spent: float = 0.0) -> Heard:
    heard, now = Heard(), [50.0]
    effort = Effort(10, heard)
    effort.spent = spent
    teller = Teller(heard, effort, lambda: now[0])
    now[0] += seconds
    teller.tell(step, 0.99, ACCURACY, n_left)
    return heard


@pytest.mark.parametrize(
    ("n_left", "seconds", "spent", "left"),
    [
        (3, 20.0, 2.0, "3 more steps, about 30 s"),
        (1, 600.0, 2.0, "1 more step, about 5 min"),
        (0, 20.0, 2.0, "the last step"),
        (None, 20.0, 2.0, "at most 8 finetunings' worth more, about 80 s"),
        (None, 20.0, 0.0, "more may follow"),
        (None, 20.0, 11.0, "no training is left for more"),
    ],
)
def test_what_is_left_follows_from_what_is_planned_or_from_the_training_that_it_may_take(
    n_left: int | None, seconds: float, spent: float, left: str
) -> None:
    heard = told(StepRecord(2, 0.473, None, 0.975, True), n_left, seconds, spent)
    assert heard.lines == [f"step 2: 47.3% of the MACs, accuracy 97.5 % (dense 99.0 %); kept; {left}"]


def test_figures_name_the_metric_and_leave_out_what_is_not_known() -> None:
    heard = told(StepRecord(1, 0.5, 40, None, False), None, 1.0)
    assert heard.lines == ["step 1: 50.0% of the MACs, 40 input features; not kept: it loses too much; more may follow"]
    assert heard.figures == [{"step/number": 1.0, "step/MACs": 0.5, "step/input features": 40.0, "step/kept": 0.0}]
