"""How much a search trains: what it may take at most, what it tries again, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune import capture
from edgeprune.errors import BudgetError
from edgeprune.graph.capture import Program
from edgeprune.progress import Silent
from edgeprune.records import DataSource
from edgeprune.results import EpochRecord
from edgeprune.search.candidate import Budgets, Trainer
from edgeprune.search.shrink import Search
from edgeprune.settings import TrainSettings

EPOCHS = 10


@dataclass
class Told(Silent):
    lines: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        self.lines.append(message)


@dataclass(frozen=True, eq=False)
class Scripted(Trainer):
    """Says of each network in turn what it was told to say; the first is the dense one, the last stays."""

    accuracies: Sequence[float] = ()
    asked: count[int] = field(default_factory=count)

    def val_accuracy(self, module: nn.Module) -> float:
        return self.accuracies[min(next(self.asked), len(self.accuracies) - 1)]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainSettings]:
    """Every training that a search asks for; none is done."""
    asked: list[TrainSettings] = []

    def fit(module: nn.Module, data: Any, normalization: Any, settings: TrainSettings, *_: Any, **__: Any) -> Any:
        asked.append(settings)
        if settings.method is not None:  # leave so many features
            weight = next(param for param in module.parameters() if param.dim() == 2)
            with torch.no_grad():
                weight[:, settings.options["n_features"] :] = 0
        return (EpochRecord(1, 0.0, 1.0, 1.0, settings.options.get("n_features")),)

    monkeypatch.setattr("edgeprune.search.step.fit", fit)
    monkeypatch.setattr("edgeprune.search.shrink.fit", fit)
    return asked


def mlp() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return capture(net, torch.randn(2, 1, 8, 8))


def search(digits: DataSource, *accuracies: float, **budgets: Any) -> Search:
    asked = {"keep_macs": None, "max_drop": 1.0, "n_features": None, "feature_ratio": None, "prune_features": False}
    settings = TrainSettings(epochs=EPOCHS)
    trainer = Scripted(digits, digits.normalization, settings, accuracies=accuracies)
    chosen = Budgets(**{**asked, "criterion": "l2", "align": 8, "seed": 0, **budgets})
    return Search(mlp(), chosen, trainer, Told())


def units(trained: Sequence[TrainSettings]) -> float:
    return sum(settings.epochs for settings in trained) / EPOCHS


def said(found: Search) -> list[str]:
    assert isinstance(found.progress, Told)
    return found.progress.lines


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize(
    "accuracies",
    [
        (0.99, 0.99),  # all holds
        (0.99, 0.99, 0.99, 0.99, 0.975),  # misses by chance from the fourth on
        (0.99, 0.985, 0.979, 0.98, 0.95, 0.985, 0.9, 0.985, 0.975),
    ],
)
def test_a_search_without_a_cost_takes_ten_finetunings_at_most(
    digits: DataSource, trained: list[TrainSettings], accuracies: Sequence[float], features: bool
) -> None:
    found = search(digits, *accuracies, prune_features=features)
    best = found.run()
    assert best.macs < found.dense.macs
    assert 0 < units(trained) <= 10
    assert found.effort.spent == units(trained)
    assert found.effort.affords(1) or "--max-finetunings 10" in said(found)[-1]


def test_what_loses_far_too_much_is_not_tried_for_long(digits: DataSource, trained: list[TrainSettings]) -> None:
    found = search(digits, 0.99, 0.5)
    with pytest.raises(BudgetError, match="no smaller network loses at most 1 accuracy points"):
        found.run()
    assert units(trained) == 3
    kept = [step.macs_ratio for step in found.steps]
    assert kept == sorted(set(kept))  # never the same widths twice


def test_more_may_be_taken(digits: DataSource, trained: list[TrainSettings]) -> None:
    accuracies = (0.99, 0.985, 0.975)
    few, many = (search(digits, *accuracies, align=1, max_finetunings=n) for n in (3, 30))
    first, n_first = few.run(), units(trained)
    second = many.run()
    assert n_first <= 3 < units(trained) - n_first <= 30
    assert second.macs <= first.macs


def test_widths_that_lost_too_much_are_not_finetuned_again(digits: DataSource, trained: list[TrainSettings]) -> None:
    """Widths are multiples of 64 here, so that a smaller step comes to the same widths."""
    found = search(digits, 0.99, 0.5, align=64)
    with pytest.raises(BudgetError):
        found.run()
    assert len({step.macs_ratio for step in found.steps}) == len(found.steps) == units(trained)


def test_a_stated_cost_is_reached_however_long_and_it_is_said(digits: DataSource, trained: list[TrainSettings]) -> None:
    found = search(digits, 0.99, 0.5, keep_macs=0.1)
    with pytest.raises(BudgetError, match="the budgets cannot be met together"):
        found.run()
    assert units(trained) > 10
    assert [line for line in said(found) if "more than 10 finetunings" in line] == said(found)[-1:]
    epochs = [settings.epochs // EPOCHS for settings in trained[-4:]]
    assert epochs == [1, 2, 4, 4]
    assert [settings.seed for settings in trained[-4:]] == [0, 1, 2, 3]


def test_a_stated_cost_that_is_soon_reached_takes_as_many_steps_as_it_needs(
    digits: DataSource, trained: list[TrainSettings]
) -> None:
    found = search(digits, 0.99, 0.99, keep_macs=0.4)
    best = found.run()
    assert best.macs <= 0.4 * found.dense.macs
    assert [replace(settings, seed=0) for settings in trained] == [TrainSettings(epochs=EPOCHS)] * 3
    assert said(found) == []


def test_without_finetuning_the_small_steps_cost_nothing(digits: DataSource, trained: list[TrainSettings]) -> None:
    found = search(digits, *[0.99] * 20, 0.5)
    assert found.trainer is not None
    free = Scripted(digits, digits.normalization, TrainSettings(epochs=0), accuracies=[0.99] * 8 + [0.5])
    untrained = Search(mlp(), found.budgets, free, Told())
    assert untrained.run().macs < 0.2 * untrained.dense.macs
    assert trained == []
    assert len(untrained.steps) > 6
