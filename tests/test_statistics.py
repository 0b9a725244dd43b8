"""Intervals and tests of accuracy, against known values and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgeprune.errors import InputError
from edgeprune.tasks.intervals import compare_accuracy, luck, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (0, 20), (9, 10), (20, 20), (355, 359), (9_876, 10_000)])
def test_wilson_equals_scipys(correct, n):
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(correct, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0.0 <= low <= correct / n <= high <= 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(correct, n):
    with pytest.raises(InputError, match=f"correct={correct}, n={n}"):
        wilson(correct, n)


def outcomes(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_compare_accuracy_on_known_counts():
    result = compare_accuracy(*outcomes(85, 8, 2, 5))
    assert (result.dense, result.slim, result.n_samples) == (0.93, 0.87, 100)
    assert result.drop_points == pytest.approx(6.0)
    assert result.mcnemar_p == pytest.approx(0.109375)  # 2 * P(at least 8 of 10 heads)
    # Bonett and Price: (9 - 3) / 102 -/+ 1.96 sqrt((12 / 102 - (6 / 102)^2) / 102), in points
    assert result.drop_interval == pytest.approx((-0.6754, 12.4401), abs=1e-4)
    assert result.dense_interval == wilson(93, 100)
    assert result.slim_interval == wilson(87, 100)


def test_no_discordant_pairs_leave_a_finite_interval():
    result = compare_accuracy(*outcomes(350, 0, 0, 9))
    assert (result.drop_points, result.mcnemar_p) == (0.0, 1.0)
    low, high = result.drop_interval
    assert low == -high and 0.1 < high < 1.0


def test_total_loss_stays_within_bounds():
    result = compare_accuracy(*outcomes(0, 3, 0, 0))
    assert result.drop_points == 100.0
    assert -100.0 < result.drop_interval[0] < result.drop_interval[1] == 100.0
    assert result.mcnemar_p == 0.25


def test_a_clear_drop_is_significant():
    result = compare_accuracy(*outcomes(300, 40, 5, 15))
    assert result.mcnemar_p < 1e-6 and result.drop_interval[0] > 0


def test_the_interval_of_the_drop_holds_its_level():
    rng = np.random.default_rng(0)
    probabilities = [0.95, 0.025, 0.01, 0.015]
    n_covered = 0
    for _ in range(1000):
        result = compare_accuracy(*outcomes(*rng.multinomial(360, probabilities)))
        n_covered += result.drop_interval[0] <= 1.5 <= result.drop_interval[1]
    assert 930 <= n_covered <= 985


@pytest.mark.parametrize(("dense", "slim"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_outcomes_that_cannot_be_paired_are_refused(dense, slim):
    with pytest.raises(InputError, match="of the same samples"):
        compare_accuracy(np.array(dense, bool), np.array(slim, bool))


def test_luck_is_what_shuffled_labels_give() -> None:
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 3, 50), rng.choice(3, 50, p=[0.6, 0.3, 0.1])
    found = luck(predicted, labels)
    shuffled = [(predicted == rng.permutation(labels)).mean() for _ in range(20_000)]
    assert found.accuracy == (predicted == labels).mean()
    assert found.expected == pytest.approx(np.mean(shuffled), abs=0.002)
    assert found.spread == pytest.approx(np.std(shuffled), rel=0.03)


@pytest.mark.parametrize(
    ("right", "n", "chance"),
    [(10, 100, True), (14, 100, True), (25, 100, False), (99, 100, False), (2, 10, False), (120, 1000, False)],
)
def test_chance_of_ten_classes(right: int, n: int, chance: bool) -> None:
    labels = np.arange(n) % 10
    predicted = np.where(np.arange(n) < n - right, (labels + 1 + np.arange(n) // 10 % 9) % 10, labels)
    assert luck(predicted, labels).is_chance is chance


def test_always_the_same_answer_is_chance_however_often_it_is_right() -> None:
    labels = (np.arange(200) % 10 == 0).astype(int)
    assert luck(np.zeros(200, int), labels).is_chance and luck(np.zeros(200, int), labels).accuracy == 0.9
    better = np.where(np.arange(200) % 20 == 0, 1, 0)  # half of the rare class is found
    assert not luck(better, labels).is_chance
    assert not luck(np.zeros(200, int), np.zeros(200, int)).is_chance  # of one class nothing can be told
    assert luck(1 - labels, labels).is_chance  # worse than luck


def test_luck_refuses_what_does_not_go_together() -> None:
    with pytest.raises(InputError, match=r"got \(3,\) and \(4,\)"):
        luck(np.zeros(3, int), np.zeros(4, int))
