"""Classes of different sizes: weights in the loss, and balanced accuracy as what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import edgeprune.compat  # noqa: F401 - what torchmetrics imports
from edgeprune.cli.app import app
from edgeprune.data import open_data
from edgeprune.data.labels import with_classes_of
from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.records import IDENTITY, DataSource
from edgeprune.tasks.balanced import BalancedClassification
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.registry import open_task
from edgeprune.tasks.weights import class_counts, weights_of, with_class_weights

NETS = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
"""


def samples(counts: tuple[int, ...], classes: tuple[str, ...] = ()) -> DataSource:
    labels = np.repeat(np.arange(len(counts)), counts)
    split = [(torch.zeros(4), int(label)) for label in labels]
    names = classes or tuple(map(str, range(len(counts))))
    return DataSource("d", split, split, split, (4,), names, IDENTITY)


def drawn(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, 4))), torch.from_numpy(rng.choice(4, n, p=(0.7, 0.2, 0.06, 0.04)))


# -- weights -----------------------------------------------------------------------------------------------------------


def test_balanced_weights_are_inverse_to_the_counts_and_one_on_the_mean() -> None:
    data = samples((60, 30, 10))
    weights = weights_of("balanced", data)
    assert weights == pytest.approx((100 / 180, 100 / 90, 100 / 30))  # as scikit-learn's compute_class_weight
    assert np.dot(weights, class_counts(data)) / 100 == pytest.approx(1)
    assert weights_of("none", data) is None
    assert weights_of("balanced", samples((9, 0, 3)))[1] == 1.0  # nothing comes of a class that is not there


def test_stated_weights_keep_their_ratios() -> None:
    weights = weights_of('{"a": 1, "b": 4}', samples((10, 10), ("a", "b")))
    assert weights == pytest.approx((0.4, 1.6))


def test_the_weighted_loss_is_a_mean_that_parts_of_a_batch_add_up_to() -> None:
    logits, y = drawn(64, 0)
    task = Classification(4, (0.5, 1.0, 2.0, 4.0))
    weight = torch.tensor(task.weights, dtype=torch.float64)
    want = (F.cross_entropy(logits, y, reduction="none") * weight[y]).mean()
    assert task.loss(logits, y).item() == pytest.approx(want.item())
    parts = [task.loss(logits[rows], y[rows]) * len(y[rows]) / 64 for rows in (slice(0, 10), slice(10, 64))]
    assert sum(parts).item() == pytest.approx(want.item())
    assert task.summed_loss(logits, y, 64) == pytest.approx(64 * want.item())
    teacher = torch.roll(logits, 1, 0)
    both = task.loss(logits, y) + task.distillation(logits, teacher)
    assert task.taught_loss(logits, y, teacher).item() == pytest.approx(both.item())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heavy", 'expected balanced, none or {"class": number, ...}, got'),
        ('{"a": 0, "b": 1}', "got 0 for 'a'"),
        ('{"a": true, "b": 1}', "got True for 'a'"),
        ('{"a": 1}', "one for each class of data d, got none of 'b'"),
        ('{"a": 1, "b": 1, "c": 1}', "got also 'c'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        weights_of(text, samples((2, 2), ("a", "b")))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_keeps_its_options_beside_the_weights(tmp_path: Path) -> None:
    assert with_class_weights(None, "balanced") == "classification?weights=balanced"
    spec = with_class_weights("classification?metric=balanced-accuracy", "balanced")
    assert spec == "classification?metric=balanced-accuracy&weights=balanced"
    assert with_class_weights(spec, "none") == "classification?metric=balanced-accuracy"
    assert with_class_weights(spec, None) == spec
    file = tmp_path / "weights.json"
    file.write_text('{"a & b": 2, "ü": 1.5}', encoding="utf-8")
    task = open_task(with_class_weights(None, str(file)), samples((3, 3), ("a & b", "ü")))
    assert task.weights == pytest.approx((8 / 7, 6 / 7))
    with pytest.raises(InputError, match="expected the task classification, got regression"):
        with_class_weights("regression", "balanced")
    file.write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(InputError, match="expected a JSON object of numbers above 0 by class"):
        with_class_weights(None, str(file))
    with pytest.raises(InputError, match="metric=accuracy or balanced-accuracy, got 'f1'"):
        open_task("classification?metric=f1", samples((3, 3)))


def test_counts_are_those_of_train_however_it_is_held() -> None:
    digits = open_data("digits")
    want = np.bincount([int(y) for _, y in (digits.train[i] for i in range(len(digits.train)))], minlength=10)
    np.testing.assert_array_equal(class_counts(digits), want)
    wider = with_classes_of(digits, [*"9876543210", "none"], 11)
    np.testing.assert_array_equal(class_counts(wider), [*want[::-1], 0])


# -- balanced accuracy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 300])
def test_balanced_accuracy_equals_scikit_learns(n: int) -> None:
    from sklearn.metrics import balanced_accuracy_score

    logits, y = drawn(n, n)
    y = y if n > 1 else torch.zeros(1, dtype=torch.int64)
    task = BalancedClassification(4)
    outcomes = task.outcomes(logits, y)
    predicted = logits.argmax(dim=1)
    rows = np.isin(predicted, y)  # scikit-learn warns of a class that is foretold and not there
    want = np.mean([(predicted[y == k] == k).double().mean() for k in y.unique()])
    assert task.value(outcomes) == pytest.approx(want)
    if rows.all():
        assert task.value(outcomes) == pytest.approx(balanced_accuracy_score(y, predicted))
    np.testing.assert_array_equal(outcomes, task.outcomes(logits.numpy(), y.numpy()))


def test_what_is_resampled_is_the_value_of_the_samples_drawn() -> None:
    logits, y = drawn(50, 1)
    task = BalancedClassification(4)
    outcomes = task.outcomes(logits, y)
    index = np.random.default_rng(0).integers(0, 50, (20, 50))
    counts = np.stack([np.bincount(row, minlength=50) for row in index])
    want = [task.value(outcomes[row]) for row in index]
    np.testing.assert_allclose(task.resampled(outcomes, counts), want)


def test_two_networks_are_compared_in_pairs() -> None:
    logits, y = drawn(400, 2)
    task = BalancedClassification(4)
    good = task.outcomes(F.one_hot(y, 4).double() + 0.3 * logits, y)
    worse = task.outcomes(F.one_hot(y, 4).double() + 0.6 * logits, y)
    found = task.compare(good, worse)
    assert found.metric.name == "balanced accuracy" and found.n_samples == 400
    assert found.drop == pytest.approx(100 * (task.value(good) - task.value(worse)))
    assert found.drop_interval is not None and found.drop_interval[0] < found.drop < found.drop_interval[1]
    assert task.compare(good, good).drop_interval == (0, 0)
    spread = np.std(task.resampled(good, np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), 500)))
    assert task.standard_error(good, good) == pytest.approx(100 * spread * 2**0.5, rel=0.25)


# -- from the command line ---------------------------------------------------------------------------------------------


def test_a_rare_class_is_learnt_recorded_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS, encoding="utf-8")
    rng = np.random.default_rng(0)
    y = (rng.random(1200) < 0.06).astype(np.int64)
    np.savez("d.npz", x=(rng.normal(size=(1200, 4)) + 1.1 * y[:, None]).astype(np.float32), y=y)
    values = {}
    for how in ("none", "balanced"):
        told = ran(
            "train", "--arch", "nets.py:net", "--data", "npz:d.npz", "--epochs", "4", "--lr", "0.01",
            "--task", "classification?metric=balanced-accuracy", "--class-weights", how, "--out", f"{how}.pt",
        )  # fmt: skip
        values[how] = told["test_balanced accuracy"]
    assert values["balanced"] > values["none"] + 0.05
    assert load("balanced.pt").info.task == "classification?metric=balanced-accuracy&weights=balanced"
    told = ran(
        "compress", "balanced.pt", "--keep-macs", "0.7", "--finetune-epochs", "1", "--max-drop", "30", "--out", "run"
    )
    assert told["comparison"]["metric"]["name"] == "balanced accuracy"
    assert told["comparison"]["dense"] == pytest.approx(values["balanced"])
    assert load("run/slim.pt2").info.task == "classification?metric=balanced-accuracy&weights=balanced"


@pytest.mark.parametrize(
    ("targets", "got"),
    [
        (np.stack([np.arange(60) % 2, np.arange(60) % 3 > 0, np.ones(60)], 1).astype(np.int64), "rows of 0 and 1"),
        (np.linspace(0, 1, 60), "floats"),
        (np.arange(60 * 16).reshape(60, 4, 4) % 3, "masks"),
    ],
)
def test_weights_beside_other_targets_than_classes_are_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: np.ndarray, got: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS, encoding="utf-8")
    np.savez("d.npz", x=np.zeros((60, 4), np.float32), y=targets)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    torch.save(net.state_dict(), "n.pt")
    given = ("--arch", "nets.py:net", "--data", "npz:d.npz", "--class-weights", "balanced", "--out", "out")
    said = f"--class-weights: expected one class a sample, which has a weight in the loss, got {got} as targets in data"
    for command in (("train",), ("federate",), ("compress", "n.pt", "--keep-macs", "0.5")):
        found = CliRunner().invoke(app, [*command, *given])
        assert found.exit_code == 2
        assert f"{said} npz:d.npz; leave the option out" in " ".join(found.stderr.split())


def ran(*command: str) -> dict:
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)
