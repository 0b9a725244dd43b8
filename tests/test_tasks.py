"""Tasks: each metric beside torchmetrics', what does not fit refused, the user's own task told by file and line."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import edgeprune.compat  # noqa: F401 - what torchmetrics imports
from edgeprune.errors import InputError
from edgeprune.records import ACCURACY, IDENTITY, DataSource, Metric, MetricComparison, Targets
from edgeprune.tasks.budget import is_within, parse_max_drop
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.intervals import compare_accuracy
from edgeprune.tasks.match import Match
from edgeprune.tasks.multilabel import Multilabel
from edgeprune.tasks.outputs import described, leaves
from edgeprune.tasks.registry import open_task, wanted_targets
from edgeprune.tasks.regression import Regression
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.wanted import WantedTargets

CLOSE = 1e-6


def data(kind: str, shape: tuple[int, ...] = (), classes: int = 0, spread: tuple[float, ...] = ()) -> DataSource:
    names = tuple(map(str, range(classes)))
    return DataSource("d", [], [], [], (4,), names, IDENTITY, targets=Targets(kind, shape, spread))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


# -- each metric equals torchmetrics' ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 37, 200])
def test_accuracy_equals_torchmetrics(n):
    from torchmetrics.functional.classification import multiclass_accuracy

    logits, y = tensor(rng(n).normal(size=(n, 5))), tensor(rng(n + 1).integers(0, 5, n))
    outcomes = Classification().outcomes(logits, y)
    expected = float(multiclass_accuracy(logits, y, 5, average="micro"))
    assert Classification().value(outcomes) == pytest.approx(expected, abs=CLOSE)
    assert np.array_equal(outcomes, Classification().outcomes(logits.numpy(), y.numpy()))


@pytest.mark.parametrize(
    ("shape", "constant"), [((1,), False), ((2,), False), ((50,), False), ((50, 3), False), ((50,), True)]
)
def test_regression_equals_torchmetrics(shape, constant):
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

    y = torch.full(shape, 3.0, dtype=torch.float64) if constant else tensor(150 + 40 * rng(1).normal(size=shape))
    got = y + tensor(rng(2).normal(size=shape))
    task = Regression()
    outcomes = task.outcomes(got, y)
    assert task.value(outcomes) == pytest.approx(float(mean_absolute_error(got, y)), abs=CLOSE)
    beside = task.beside(outcomes)
    assert beside["RMSE"] == pytest.approx(float(mean_squared_error(got, y, squared=False)), abs=CLOSE)
    if len(y) > 1:
        assert beside["R2"] == pytest.approx(float(r2_score(got, y)), abs=CLOSE)
    else:
        assert "R2" not in beside


def test_r2_of_targets_far_from_zero_and_of_maps():
    """The sums that torchmetrics takes of squares cancel out there; NumPy's definition does not."""
    y = 1e7 + rng(0).normal(size=(40, 2, 3, 5))
    got = y + 0.1 * rng(1).normal(size=y.shape)
    columns = [(y[:, i].ravel(), got[:, i].ravel()) for i in range(2)]
    expected = np.mean([1 - ((g - w) ** 2).sum() / ((w - w.mean()) ** 2).sum() for w, g in columns])
    task = Regression()
    outcomes = task.outcomes(got, y)
    assert task.beside(outcomes)["R2"] == pytest.approx(expected, abs=CLOSE)
    assert task.value(outcomes) == pytest.approx(np.abs(got - y).mean(), abs=CLOSE)


@pytest.mark.parametrize("case", ["plain", "ties", "absent label", "single sample", "large logits"])
def test_mean_average_precision_equals_torchmetrics(case):
    from torchmetrics.functional.classification import multilabel_average_precision

    n = 1 if case == "single sample" else 60
    logits, y = rng(3).normal(size=(n, 4)), rng(4).integers(0, 2, (n, 4))
    if case == "ties":
        logits = logits.round()
    if case == "absent label":
        y[:, 2] = 0
    if case == "single sample":
        y = np.array([[1, 0, 1, 1]])
    wanted = torch.sigmoid(tensor(logits))  # before they become too large for it to tell them apart
    if case == "large logits":
        logits = logits * 100
    task = Multilabel()
    outcomes = task.outcomes(logits, y)
    expected = float(multilabel_average_precision(wanted, tensor(y), 4, average="macro"))
    assert task.value(outcomes) == pytest.approx(expected, abs=CLOSE)
    once = task.resampled(outcomes, np.ones((1, n), np.int64))
    assert once[0] == pytest.approx(expected, abs=CLOSE), "the bootstrap's value is that of torchmetrics, too"


def test_a_bootstrap_of_average_precision_counts_samples_as_often_as_they_are_drawn():
    logits, y = rng(3).normal(size=(30, 3)).round(1), rng(4).integers(0, 2, (30, 3))
    task = Multilabel()
    outcomes = task.outcomes(logits, y)
    counts = rng(5).multinomial(30, [1 / 30] * 30, size=4)
    for row, found in zip(counts, task.resampled(outcomes, counts), strict=True):
        assert found == pytest.approx(task.value(outcomes[np.repeat(np.arange(30), row)]), abs=CLOSE)


@pytest.mark.parametrize("ignore", [None, 255, 0])
@pytest.mark.parametrize("case", ["plain", "absent class", "given alone", "single sample", "one sample ignored"])
def test_intersection_over_union_equals_torchmetrics(case, ignore):
    from torchmetrics.functional.classification import multiclass_jaccard_index

    n = 1 if case == "single sample" else 7
    scores, masks = rng(6).normal(size=(n, 4, 5, 6)), rng(7).integers(0, 4, (n, 5, 6))
    if case in ("absent class", "given alone"):
        masks[masks == 3] = 1
    if case == "absent class":
        scores[:, 3] = -100
    if ignore == 255:
        masks[rng(8).random(masks.shape) < 0.2] = 255
    if case == "one sample ignored" and ignore is not None:
        masks[0] = ignore
    task = Segmentation(ignore)
    outcomes = task.outcomes(scores, masks)
    expected = multiclass_jaccard_index(tensor(scores), tensor(masks), 4, average="macro", ignore_index=ignore)
    assert task.value(outcomes) == pytest.approx(float(expected), abs=CLOSE)
    parts = [task.outcomes(scores[i : i + 1], masks[i : i + 1]) for i in range(n)]
    assert np.array_equal(np.concatenate(parts), outcomes), "what a sample counts does not depend on its batch"


def test_one_channel_is_the_logit_of_class_one():
    logit, masks = tensor(rng(0).normal(size=(3, 1, 4, 4))), tensor(rng(1).integers(0, 2, (3, 4, 4)))
    task = Segmentation()
    expected = F.binary_cross_entropy_with_logits(logit[:, 0], masks.double())
    assert float(task.loss(logit, masks)) == pytest.approx(float(expected))
    both = torch.cat([torch.zeros_like(logit), logit], dim=1)
    assert np.array_equal(task.outcomes(logit, masks), task.outcomes(both, masks))
    assert task.outcomes(logit, masks)[:, 1, 0].sum() == int(((logit[:, 0] > 0) & (masks == 1)).sum())


def test_pixels_that_are_all_ignored_cost_nothing_and_have_no_value():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    masks = torch.full((2, 4, 4), 255)
    task = Segmentation()
    loss = task.loss(scores, masks)
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()
    with pytest.raises(InputError, match="expected pixels that count, got none: all are 255"):
        task.value(task.outcomes(scores, masks))


# -- what the best answer that is the same for every sample comes to ---------------------------------------------------


def test_a_regression_is_guessed_by_the_mean_of_the_targets():
    y = tensor(rng(0).normal(100, 5, size=(60, 2)))
    task = Regression((5.0, 5.0), "EUR")
    mean = y.mean(0, keepdim=True).expand_as(y)
    for outputs, is_chance in ((mean, True), (mean + 1, True), (mean + 0.1 * (y - mean), False), (y, False)):
        found = task.guess(task.outcomes(outputs, y))
        assert (found.metric.name, found.guess, found.is_chance) == ("R2", 0.0, is_chance)
    constant = tensor(np.concatenate([y[:, :1], np.full((60, 1), 7.0)], axis=1))
    assert task.guess(task.outcomes(constant, constant)).value == 1  # of the column that differs
    assert task.guess(task.outcomes(constant[:, 1:], constant[:, 1:])) is None


def test_labels_are_guessed_by_how_often_they_are():
    y = tensor(np.tile([[1, 0, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], (10, 1)))
    task = Multilabel()
    for outputs, is_chance in ((torch.zeros(40, 4), True), (-y.double(), True), (y.double(), False)):
        found = task.guess(task.outcomes(outputs, y))
        assert (found.guess, found.is_chance) == (0.25, is_chance)  # of the two that some have and some have not
    assert task.guess(task.outcomes(torch.zeros(40, 2), y[:, 2:])) is None


@pytest.mark.parametrize("always", range(3))
def test_pixels_are_guessed_by_the_class_of_the_most(always):
    masks = tensor(rng(0).choice(3, p=(0.7, 0.2, 0.1), size=(30, 6, 6)))
    masks[:, 0] = 255
    task = Segmentation()
    given = F.one_hot(torch.full_like(masks, always), 3).movedim(-1, 1).double()
    found = task.guess(task.outcomes(given, masks))
    assert found.is_chance
    best = task.value(task.outcomes(F.one_hot(torch.zeros_like(masks), 3).movedim(-1, 1).double(), masks))
    assert found.guess == pytest.approx(best)
    right = F.one_hot(masks.clamp(max=2), 3).movedim(-1, 1).double()
    assert not task.guess(task.outcomes(right, masks)).is_chance
    alone = torch.zeros_like(masks)
    assert task.guess(task.outcomes(given, alone)) is None


def test_answers_to_be_met_are_not_guessed():
    outputs = torch.randn(30, 4)
    assert Match().guess(Match().outcomes(outputs, outputs)) is None


@dataclasses.dataclass
class Answer:
    boxes: torch.Tensor
    heads: tuple[torch.Tensor, list[torch.Tensor]]
    none: None = None


def test_agreement_is_one_less_the_relative_error():
    want = Answer(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), (torch.ones(2, 2, 2), [torch.tensor([1, 2])]))
    got = Answer(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), (torch.ones(2, 2, 2) * 1.1, [torch.tensor([1, 3])]))
    outcomes = Match().outcomes(got, want)
    assert outcomes == pytest.approx([1 - (0 + 0.1 + 0) / 3, 1 - (0.5 + 0.1 + 1) / 3])
    assert Match().value(outcomes) == pytest.approx(outcomes.mean())
    assert Match().outcomes(want, want) == pytest.approx([1, 1])


def test_agreement_where_nothing_is_wanted_or_nan_is_got():
    zero = torch.zeros(2, 3)
    assert Match().outcomes({"a": zero}, {"a": zero}).tolist() == [1, 1]
    assert Match().outcomes({"a": zero + 5}, {"a": zero}).tolist() == [0, 0]
    for want in (zero, zero + 1, zero * math.nan):
        with pytest.raises(InputError, match="agreement: expected a finite value, got nan"):
            Match().value(Match().outcomes(zero * math.nan, want))


# -- losses ------------------------------------------------------------------------------------------------------------


def test_the_classification_losses_are_cross_entropy_and_the_divergence_from_the_teacher():
    logits, teacher, y = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    task = Classification()
    assert torch.equal(task.loss(logits, y), F.cross_entropy(logits, y))
    wanted, got = F.log_softmax(teacher, 1), F.log_softmax(logits, 1)
    apart = F.kl_div(got, wanted, reduction="batchmean", log_target=True)
    assert torch.equal(task.distillation(logits, teacher), apart)
    assert torch.equal(task.taught_loss(logits, y, teacher), F.cross_entropy(logits, y) + apart)


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (Regression((2.0, 30.0)), torch.randn(5, 2)),
        (Multilabel(), torch.randn(5, 3)),
        (Segmentation(), torch.randn(5, 3, 4, 4)),
        (Segmentation(), torch.randn(5, 1, 4, 4)),
        (Classification(), torch.randn(5, 3)),
    ],
)
def test_a_distillation_is_nothing_where_both_agree_and_pulls_towards_the_teacher(task, outputs):
    student = (outputs + torch.randn_like(outputs)).requires_grad_()
    assert float(task.distillation(outputs, outputs)) == pytest.approx(0, abs=1e-6)
    apart = task.distillation(student, outputs)
    apart.backward()
    assert 0 < float(task.distillation(student.detach() - 0.01 * student.grad, outputs)) < float(apart)


def test_the_regression_loss_does_not_depend_on_the_unit():
    got, y = torch.randn(8, 2), torch.randn(8, 2)
    scales = torch.tensor([1.0, 1000.0])
    plain, scaled = Regression((1.0, 1.0)), Regression((1.0, 1000.0))
    assert float(scaled.loss(got * scales, y * scales)) == pytest.approx(float(plain.loss(got, y)))


def test_one_number_a_sample_never_meets_all_of_a_batch():
    """`(n, 1)` beside `(n,)` would be broadcast to `(n, n)`."""
    got, y = torch.randn(8, 1), torch.randn(8)
    task = Regression()
    assert torch.equal(task.loss(got, y), task.loss(got[:, 0], y))
    assert task.outcomes(got, y).shape == (8, 1, 4)
    assert task.value(task.outcomes(got, y)) == pytest.approx(float((got[:, 0] - y).abs().mean()))


def test_match_has_scores_where_its_loss_is_flat():
    net = torch.nn.Linear(4, 3)
    x = torch.randn(16, 4)
    dense = net(x).detach()
    net.zero_grad()
    Match().loss(net(x), dense).backward()
    assert not net.weight.grad.any()
    effects = []
    for seed in range(400):
        net.zero_grad()
        Match().scoring(net(x), dense, seed).backward()
        effects.append((net.weight.grad * net.weight).sum(1).square())
    # Taking unit i away changes the outputs by its own column: the mean of squares over the outputs' mean square.
    change = (net(x) - net.bias).square().mean(0) / 3 / net(x).square().mean()
    assert torch.stack(effects).mean(0).detach() == pytest.approx(change.detach(), rel=0.35)


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_a_comparison_of_classes_is_that_of_accuracies():
    dense, slim = rng(0).random(100) < 0.9, rng(1).random(100) < 0.8
    found, expected = Classification().compare(dense, slim), compare_accuracy(dense, slim)
    assert (found.drop, found.drop_interval, found.p_value) == (
        expected.drop_points,
        expected.drop_interval,
        expected.mcnemar_p,
    )
    assert found.metric.shown(0.9725) == "97.2 %" and found.metric.drop(0.9, 0.8) == pytest.approx(10)


def test_a_metric_that_falls_as_it_gets_better_drops_as_it_rises():
    y = rng(0).normal(size=80)
    task = Regression(unit="mmol")
    dense, slim = (task.outcomes(y + size * rng(1).normal(size=80), y) for size in (0.5, 0.7))
    found = task.compare(dense, slim)
    assert found.drop == pytest.approx(found.slim - found.dense) and found.drop > 0
    assert found.drop_interval[0] > 0 and found.dense_interval[0] < found.dense < found.dense_interval[1]
    assert found.metric == Metric("MAE", "mmol", 1.0, higher_is_better=False)
    assert found.metric.shown(0.41236) == "0.4124 mmol" and not found.metric.better(0.7, 0.5)
    assert [figure.name for figure in found.beside] == ["RMSE", "R2"]


def test_a_comparison_is_the_same_each_time_and_none_of_a_single_sample():
    task = Match()
    dense, slim = np.ones(30), 1 - rng(0).random(30) / 10
    assert task.compare(dense, slim) == task.compare(dense, slim)
    alone = task.compare(dense[:1], slim[:1])
    assert alone.drop > 0 and alone.drop_interval is None and alone.dense_interval is None
    with pytest.raises(InputError, match="expected outcomes of the same samples, got 30 and 29"):
        task.compare(dense, slim[1:])


@pytest.mark.parametrize(
    ("text", "metric", "dense", "limit"),
    [
        ("1.5", ACCURACY, 0.8, 1.5),
        ("1.5 points", ACCURACY, 0.8, 1.5),
        ("2%", ACCURACY, 0.8, 1.6),
        ("0", ACCURACY, 0.8, 0),
        ("3", Metric("MAE", "mmol", 1.0, False), 40.0, 3),
        (".5mmol", Metric("MAE", "mmol", 1.0, False), 40.0, 0.5),
        ("5 %", Metric("MAE", "", 1.0, False), 40.0, 2),
    ],
)
def test_a_budget_is_in_the_metrics_unit_or_relative(text, metric, dense, limit):
    budget = parse_max_drop(text)
    assert budget.limit(metric, dense) == pytest.approx(limit)
    worse = -1 if metric.higher_is_better else 1

    def held(slim):
        return is_within(metric.drop(dense, slim), budget.limit(metric, dense))

    assert held(dense + worse * limit / metric.scale)
    assert not held(dense + worse * (limit + 0.01) / metric.scale)
    assert held(dense - worse), "better is always allowed"


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        ("3 points", Metric("MAE", "mmol", 1.0, False), "expected mmol or %, as MAE is measured in, got 'points'"),
        ("3 mmol", Metric("MAE", "", 1.0, False), "expected a bare number or %, as MAE is measured in, got 'mmol'"),
        ("3 mmol", ACCURACY, "expected points or %, as accuracy is measured in, got 'mmol'"),
        ("-1", ACCURACY, "expected a number of at least 0, with % or the metric's unit, got '-1'"),
        ("nan", ACCURACY, "got 'nan'"),
        ("", ACCURACY, "got ''"),
    ],
)
def test_a_budget_in_a_unit_that_the_metric_has_not_is_refused(text, metric, message):
    with pytest.raises(InputError, match=message):
        parse_max_drop(text).limit(metric, 0.5)


# -- the chance that an interval misses --------------------------------------------------------------------------------


def _classes(generator, n):
    right = generator.random(n)
    other = np.where(generator.random(n) < 0.2, generator.random(n), right)
    return right < 0.9, other < 0.85


def _values(generator, n):
    y, shared = generator.normal(size=(2, n))
    task = Regression()
    return tuple(task.outcomes(y + size * (shared + generator.normal(size=n)), y) for size in (0.5, 0.6))


def _flags(generator, n):
    y = generator.random((n, 3)) < [0.5, 0.3, 0.4]
    shared = y + generator.normal(size=y.shape)
    return tuple(Multilabel().outcomes(shared + size * generator.normal(size=y.shape), y) for size in (0.3, 0.8))


def _masks(generator, n):
    masks = generator.integers(0, 3, (n, 4, 4))
    hard = generator.random((n, 1, 1))  # some samples are harder than others
    true = np.eye(3)[masks].transpose(0, 3, 1, 2)
    noise = generator.normal(size=true.shape)
    found = [true + (size + hard[..., None]) * noise for size in (0.2, 0.5)]
    return tuple(Segmentation().outcomes(scores, masks) for scores in found)


def _answers(generator, n):
    want = generator.normal(size=(n, 6))
    return tuple(Match().outcomes(want + size * generator.normal(size=want.shape), want) for size in (0.1, 0.2))


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("task", "draw"),
    [
        (Classification(), _classes),
        (Regression(), _values),
        (Multilabel(), _flags),
        (Segmentation(), _masks),
        (Match(), _answers),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_an_interval_covers_what_it_says(task, draw):
    """95 % +- 2 of the intervals of 200 samples hold the drop of very many."""
    whole = [task.value(outcomes) for outcomes in draw(rng(1), 400_000)]
    truth, generator, n_runs = task.metric.drop(*whole), rng(2), 1500
    found = [task.compare(*draw(generator, 200)).drop_interval for _ in range(n_runs)]
    covered = np.mean([low <= truth <= high for low, high in found])
    assert 0.93 <= covered <= 0.97, f"{task.name}: {covered:.1%}"


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "found", "outputs", "message"),
    [
        (Classification(), data("classes", (), 3), torch.zeros(2, 4), r"outputs \(batch, 3\).* got \(2, 4\) float32"),
        (Classification(), data("classes", (), 3), torch.zeros(2, 3, 3), r"logits .* got \(2, 3, 3\) float32"),
        (
            Classification(),
            data("classes", (), 3),
            {"a": torch.zeros(2, 3), "b": torch.zeros(2, 1)},
            r"got a \(2, 3\) float32 and b \(2, 1\) float32",
        ),
        (
            Regression(),
            data("values", (2,)),
            torch.zeros(5, 3),
            r"like the targets, \(batch, 2\), got \(5, 3\) float32",
        ),
        (Regression(), data("values"), torch.zeros(5, 3), r"like the targets, \(batch\), got \(5, 3\) float32"),
        (Multilabel(), data("flags", (2,), 2), torch.zeros(5, 3), r"the targets, \(batch, 2\), got \(5, 3\) float32"),
        (
            Segmentation(),
            data("masks", (8, 8), 3),
            torch.zeros(2, 3, 4, 4),
            r"\(batch, 3, 8, 8\) as the masks are \(batch, 8, 8\), got \(2, 3, 4, 4\)",
        ),
        (
            Segmentation(),
            data("masks", (8, 8), 3),
            torch.zeros(2, 2, 8, 8),
            r"at least 3 classes, .* got \(2, 2, 8, 8\)",
        ),
        (Segmentation(), data("masks", (8, 8), 3), torch.zeros(2, 3), r"height, width\).* got \(2, 3\) float32"),
        (Match(), data("none"), torch.zeros(2, 3, dtype=torch.int64), r"output of floats.* got \(2, 3\) int64"),
        (Match(), data("none"), "no tensor", "expected tensors, in dicts.* got str"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_with_both_shapes(task, found, outputs, message):
    with pytest.raises(InputError, match=message):
        task.check(outputs, found)


@pytest.mark.parametrize(
    ("task", "raw", "message"),
    [
        (
            Classification(),
            torch.tensor([0.5, 1.5]),
            r"one int a sample, its class, got \(2,\) float32; floats .* regression",
        ),
        (Classification(), torch.zeros(2, 3, dtype=torch.int64), r"one int a sample, its class, got \(2, 3\) int64"),
        (Classification(3), torch.tensor([0, 3]), "classes from 0 to 2, got 3"),
        (Classification(3), torch.tensor([0, -1]), "classes from 0 to 2, got -1"),
        (Regression(), torch.tensor([1.0, math.nan]), "finite numbers, got NaN"),
        (Regression(), None, "expected numbers .* got nothing"),
        (Multilabel(), torch.tensor([[0.0, 0.5]]), r"of 0 and 1, got \(1, 2\) float32 with 0.5"),
        (Multilabel(), torch.tensor([0, 1]), r"of 0 and 1, got \(2,\) int64"),
        (Segmentation(n_classes=3), torch.full((1, 2, 2), 3), "values from 0 to 2, or 255, got 3"),
        (Segmentation(None, 3), torch.full((1, 2, 2), 255), "values from 0 to 2, got 255"),
        (Segmentation(), torch.zeros(1, 2, 2), r"whole numbers .* got \(1, 2, 2\) float32"),
    ],
)
def test_targets_that_do_not_fit_are_refused(task, raw, message):
    with pytest.raises(InputError, match=message):
        task.targets(raw)


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        (Regression(), torch.zeros(4, 2), torch.zeros(4, 3), r"targets, \(4, 3\), got \(4, 2\)"),
        (Multilabel(), torch.zeros(4, 2), torch.zeros(4, 3), r"targets, \(4, 3\), got \(4, 2\)"),
        (
            Segmentation(),
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 5, 5, dtype=torch.int64),
            r"\(2, 5, 5\), got \(2, 3, 4, 4\)",
        ),
        (Segmentation(), torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 7), "from 0 to 2, or 255, got 7"),
        (
            Match(),
            {"a": torch.zeros(2, 3)},
            {"b": torch.zeros(2, 3)},
            r"dense network, b \(2, 3\) float32, got a \(2, 3\)",
        ),
        (Match(), torch.zeros(2, 3), torch.zeros(2, 4), r"dense network, \(2, 4\) float32, got \(2, 3\) float32"),
    ],
)
def test_outputs_beside_targets_that_do_not_fit_are_refused(task, outputs, targets, message):
    with pytest.raises(InputError, match=message):
        task.outcomes(outputs, targets)


@pytest.mark.parametrize("task", [Regression(), Multilabel(), Match()])
def test_outputs_of_nan_have_no_value(task):
    outputs, targets = torch.full((3, 2), math.nan), torch.ones(3, 2)
    with pytest.raises(InputError, match="expected a finite value"):
        task.value(task.outcomes(outputs, targets))


def test_no_label_that_any_sample_has_is_refused():
    with pytest.raises(InputError, match="mAP: expected a label that some sample has, got none in 3"):
        Multilabel().value(Multilabel().outcomes(torch.randn(3, 2), torch.zeros(3, 2)))


def test_leaves_are_named_and_described():
    answer = Answer(torch.zeros(2, 3), (torch.zeros(2), [torch.zeros(2, 1, dtype=torch.int64)]))
    assert [name for name, _ in leaves(answer)] == ["boxes", "heads.0", "heads.1.0"]
    assert described(answer) == "boxes (2, 3) float32 and heads.0 (2,) float32 and heads.1.0 (2, 1) int64"
    assert described(3) == "int" and described(None) == "nothing" and described(np.zeros(2)) == "(2,) float64"


# -- which task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("classes", "classification"),
        ("values", "regression"),
        ("flags", "multilabel"),
        ("masks", "segmentation"),
        ("none", "match"),
    ],
)
def test_the_default_comes_from_the_targets(kind, name):
    found = data(kind, classes=3)
    assert open_task(None, found).name == name == open_task(name, found).name
    assert open_task("match", found).name == "match"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("clasification", "classes", "expected classification, multilabel, .* or path/file.py:factory; got 'clasif"),
        ("regression", "classes", "task regression: expected floats as targets, got class labels in data d"),
        ("classification", "values", "task classification: expected class labels as targets, got floats"),
        ("multilabel", "none", "task multilabel: expected rows of 0 and 1 as targets, got none"),
        ("match?x=1", "none", r"expected options \(none\), got 'x'"),
        ("segmentation?ignore=one", "masks", r"expected \?ignore= with a whole number or none, got 'one'"),
        ("segmentation?ignore", "masks", "expected key=value"),
        (None, "other", "expected a task for targets of its own, path/file.py:factory"),
    ],
)
def test_a_task_that_is_unknown_or_does_not_go_with_the_data_is_refused(spec, kind, message):
    with pytest.raises(InputError, match=message):
        open_task(spec, data(kind))


def test_options_reach_the_task():
    assert open_task("segmentation?ignore=none", data("masks", (2, 2), 3)) == Segmentation(None, 3)
    assert open_task("segmentation?ignore=0", data("masks", (2, 2), 3)) == Segmentation(0, 3)
    assert open_task("regression?unit=mmol", data("values", (), 0, (4.0,))) == Regression((4.0,), "mmol")
    assert wanted_targets("regression?unit=mmol").kind == "values" and wanted_targets(None) == WantedTargets()
    assert wanted_targets("segmentation?ignore=none") == WantedTargets("masks", None, ignore_asked=True)
    with pytest.raises(InputError, match="expected options unit"):
        wanted_targets("regression?units=mmol")


# -- the user's own ----------------------------------------------------------------------------------------------------

OWN = """
import torch
from types import SimpleNamespace

class Task:
    metric = SimpleNamespace(name="RMSE", unit="m", scale=1, higher_is_better=False)
    def __init__(self, power):
        self.power = power
    def loss(self, outputs, targets):
        return (outputs - targets).abs().pow(self.power).mean()
    def outcomes(self, outputs, targets):
        return [float(row) for row in ((outputs - targets) ** 2).mean(1)]
    def value(self, outcomes):
        return (sum(outcomes) / len(outcomes)) ** 0.5

def task(power=2):
    return Task(power)
"""


def own(folder, text: str = OWN, spec: str = "task"):
    (folder / "own.py").write_text(text)
    return open_task(f"{folder / 'own.py'}:{spec}", data("values", (2,)))


def test_a_task_of_the_users_own(tmp_path):
    task = own(tmp_path, spec="task?power=4")
    got, want = torch.randn(40, 2), torch.zeros(40, 2)
    assert float(task.loss(got, want)) == pytest.approx(float(got.pow(4).mean()))
    assert task.metric == Metric("RMSE", "m", 1.0, higher_is_better=False)
    dense, slim = (task.outcomes(got * size, want) for size in (1.0, 1.5))
    found = task.compare(dense, slim)
    assert isinstance(found, MetricComparison)
    assert found.drop == pytest.approx(0.5 * found.dense) and 0 < found.drop_interval[0] < found.drop
    assert task.agrees(got, want) is None and task.beside(dense) == {} and not task.by_reference
    assert task.guess(dense) is None


def test_a_task_of_the_users_own_may_say_what_a_guess_comes_to(tmp_path):
    text = OWN.replace("    def value(", "    def guess(self, outcomes):\n        return 2.0\n    def value(")
    task = own(tmp_path, text)
    for size, is_chance in ((1.0, False), (2.0, True), (3.0, True)):
        assert task.guess([size**2] * 30).is_chance == is_chance


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return (outputs - t",
            "raise KeyError('lost'); (outputs - t",
            r"loss raised KeyError: 'lost' \(at .*own.py:10 in",
        ),
        (
            ".pow(self.power).mean()",
            "",
            r"loss: expected a float tensor with one number.* got \(3, 2\).*own.py:9 in loss",
        ),
        (".pow(self.power).mean()", ".mean().item()", r"loss: expected a float tensor .* got float \(at .*own.py:9"),
        (
            "mean()\n",
            "mean() * torch.nan\n",
            r"loss: expected a finite number for finite outputs, got nan \(at .*own.py:9",
        ),
        ("(1)]", "(1)][:1]", r"outcomes: expected .* each of 3 samples, got 1 of them \(at .*own.py:11 in outcomes"),
        (
            "return [float(row) for row in",
            "return 3; [float(row) for row in",
            "outcomes: expected a sequence .* got int",
        ),
        (" ** 0.5", " * float('nan')", r"value: expected a finite number, got nan \(at .*own.py:13 in value"),
        ("return (sum(outcomes)", "return str(sum(outcomes)", r"value (raised|: expected a number, got str)"),
        ("def value", "def worth", "expected a task with metric, loss, outcomes, value; got Task without value"),
        (
            "    return (outputs",
            "    return (outputs.detach()",
            r"loss: expected a number that gradients .*own.py:9 in",
        ),
        ('name="RMSE"', 'name="a\\nb"', r"metric.name: expected a name in one line, got 'a\\nb'"),
        ('name="RMSE"', 'name=" "', "metric.name: expected a name in one line, got ' '"),
        ('unit="m"', 'unit="\\x1b[2J"', "metric.unit: expected a unit in one line, got "),
        ("scale=1", "scale=0", "metric.scale: expected a number above 0, got 0.0"),
        ("scale=1", "scale=float('nan')", "metric.scale: expected a number above 0, got nan"),
        (', unit="m"', "", "expected a metric with name, unit, scale, higher_is_better, got one without unit"),
        ("return Task(power)", "return Task", "outcomes|without|metric|raised"),
        ("def task", "def tasks", "expected a function 'task'"),
        ("import torch\n", "import torch\n1 / 0\n", r"importing it raised ZeroDivisionError.*own.py:3"),
    ],
)
def test_what_a_task_of_the_users_own_does_wrong_is_told_by_file_and_line(tmp_path, old, new, message):
    assert old in OWN
    with pytest.raises(InputError, match=message):
        task = own(tmp_path, OWN.replace(old, new))
        got, want = torch.randn(3, 2, requires_grad=True), torch.zeros(3, 2)
        task.loss(got, want)
        task.value(task.outcomes(got, want))
