"""What the search's trainer asks of the training: how long, in which order, towards which teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune import analyze, capture
from edgeprune.progress import Silent
from edgeprune.records import DataSource
from edgeprune.results import EpochRecord, FeatureCount
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.trainer import Round
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from edgeprune.training import StateFile, evaluate

OWN = TrainSettings(epochs=10, seed=5, lr=3e-3, schedule="step", options={"gamma": 0.2})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every training that is asked for; none is done."""
    calls: list[tuple[Any, ...]] = []

    def fit(*given: Any, **named: Any) -> tuple[EpochRecord, ...]:
        calls.append((*given, named))
        return (EpochRecord(1, 0.0, 1.0, 0.8, 40), EpochRecord(2, 0.0, 1.0, 0.9, None))

    monkeypatch.setattr("edgeprune.search.datatrainer.fit", fit)
    return calls


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_further_rounds_are_longer_and_see_another_order(digits: DataSource, asked: list[tuple[Any, ...]]) -> None:
    teacher, told = net(), Silent()
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION, teacher, progress=told)
    assert trainer.trains
    assert all(trainer.finetune(net(), Round(number)) for number in range(4))
    settings = [call[3] for call in asked]
    assert [one.epochs for one in settings] == [10, 20, 40, 40]
    assert [one.seed for one in settings] == [5, 6, 7, 8]
    assert [one.schedule for one in settings] == ["step", "step", "constant", "constant"]
    assert {one.lr for one in settings} == {3e-3}
    assert all(call[4] is told and call[5] is teacher for call in asked)


def test_a_part_of_a_training_has_its_learning_rates(digits: DataSource, asked: list[tuple[Any, ...]]) -> None:
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION)
    for part in ((0.0, 0.34), (0.34, 0.66), (0.66, 1.0)):
        trainer.finetune(net(), Round(part=part))
    assert [call[-1]["part"] for call in asked] == [(0, 3), (3, 7), (7, 10)]
    assert {call[3].epochs for call in asked} == {10} and {call[3].schedule for call in asked} == {"step"}


@pytest.mark.parametrize(
    ("trained", "epochs", "part"), [(40, 40, (30, 40)), (10, 10, (0, 10)), (3, 10, (0, 10)), (None, 10, (0, 10))]
)
def test_a_learning_rate_is_rewound_as_far_as_the_training_went(
    digits: DataSource, asked: list[tuple[Any, ...]], trained: int | None, epochs: int, part: tuple[int, int]
) -> None:
    """Renda et al.: a retraining of t epochs has the learning rates of the last t epochs of the training."""
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION, trained_epochs=trained)
    trainer.finetune(net(), Round(rewinds=True))
    trainer.finetune(net(), Round())
    assert [(call[3].epochs, call[-1]["part"]) for call in asked] == [(epochs, part), (10, (0, 10))]


def test_features_are_selected_by_their_method(digits: DataSource, asked: list[tuple[Any, ...]]) -> None:
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION)
    module = net()
    graph = analyze(capture(module, torch.randn(2, 1, 8, 8)), inputs=True)
    assert trainer.select(module, graph, 20, units=2) == (FeatureCount(40, 0.8), FeatureCount(0, 0.9))
    [(*_, settings, _, teacher, named)] = asked
    assert (settings.epochs, settings.method, teacher) == (20, "feature-selection", None)
    assert settings.options == {"gamma": 0.2, "n_features": 20}
    rest = dict.fromkeys(("aim", "part", "checkpoint", "features"))
    assert named == {"graph": graph, "task": CLASSIFICATION, **rest}


def test_a_training_keeps_its_state_where_it_is_told(
    digits: DataSource, asked: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    state = StateFile(tmp_path / "x.training", {})
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION, running=lambda: state)
    trainer.finetune(net(), Round())
    assert asked[0][-1]["checkpoint"] is state


def test_without_epochs_batch_norm_is_estimated_again(digits: DataSource, asked: list[tuple[Any, ...]]) -> None:
    trainer = DataTrainer(digits, digits.normalization, TrainSettings(epochs=0), CLASSIFICATION)
    assert not trainer.trains
    assert not trainer.finetune(net(), Round())
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)).eval()
    assert trainer.finetune(normed, Round())
    assert normed[1].running_mean.abs().max() > 0
    assert asked == []


def test_it_judges_by_the_validation_split(digits: DataSource) -> None:
    trainer, module = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION), net().eval()
    assert trainer.evaluation(module).value == evaluate(module, digits.val, digits.normalization).value


def test_the_dense_network_is_the_teacher_of_a_match_and_its_target(
    digits: DataSource, asked: list[tuple[Any, ...]]
) -> None:
    dense, module = net().eval(), net().eval()
    trainer = DataTrainer(digits, digits.normalization, OWN, Match(), dense)
    assert trainer.finetune(module, Round()) and trainer.judge.reference is dense
    assert (asked[0][5], asked[0][6]["task"]) == (dense, Match())
    assert trainer.evaluation(dense).value == 1.0
    x, targets = next(iter(trainer.score_batches()))
    assert torch.equal(targets, dense(x))


def test_units_are_scored_on_small_batches_of_the_type_that_the_network_takes(digits: DataSource) -> None:
    trainer = DataTrainer(digits, digits.normalization, OWN, CLASSIFICATION, dtype=torch.float64)
    x, y = next(iter(trainer.score_batches()))
    assert (tuple(x.shape), x.dtype, tuple(y.shape)) == ((16, 1, 8, 8), torch.float64, (16,))
    assert len(list(trainer.score_batches())) == 64
    inputs = trainer.some_inputs()
    assert (tuple(inputs.shape), inputs.dtype) == ((4, 1, 8, 8), torch.float64)
