"""Whether a network does its task at all: what is measured on one that does no better than a guess means nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data import order
from edgeprune.data.splits import some_of
from edgeprune.errors import InputError
from edgeprune.formats.normalizing import other_normalizations
from edgeprune.formats.pretrained import option_text
from edgeprune.graph.capture import Program
from edgeprune.records import IDENTITY, DataSource, MetricComparison, Model, Normalization
from edgeprune.tasks.classification import CLASSIFICATION, Classification, scores
from edgeprune.tasks.intervals import FEWEST, Luck, luck
from edgeprune.tasks.task import Guess, Outcomes, Task
from edgeprune.training import Judge, outputs_of

_BATCH = 512
_MOST_SAMPLES = 1000
_FEW_SAMPLES = 200  # to look whether another normalisation would do better
_CLEARLY = 0.01  # p of McNemar's test
_EXPECTED = "expected the network to do better than guessing"
_CONSTANT = 1e-6  # spread of what is right: none, but for rounding

Answers = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a network stands beside guesses: what its figure is worth, the higher the better, and in words."""

    worth: float
    is_chance: bool
    shown: str
    told: str


def check_above_chance(model: Model, data: DataSource, task: Task) -> None:
    """Raise InputError where the network is no better than guessing on the validation split.

    At most 1,000 samples are looked at, evenly spaced. The message says which other normalisation would do better. A
    task that does not know what a guess comes to is told nothing.
    """
    assert model.info.normalization is not None
    split = some_of(data.val, _MOST_SAMPLES)
    found = _standing(model, split, model.info.normalization, task)
    if found is None or not found.is_chance:
        return
    tried = {name: _standing(model, split, one, task) for name, one in other_normalizations(model, data).items()}
    better = {
        name: one for name, one in tried.items() if one is not None and not one.is_chance and one.worth > found.worth
    }
    how = "as the data hold them" if model.info.normalization == IDENTITY else option_text(model.info.normalization)
    raise InputError(f"data {data.name}: {found.told} (inputs {how:.60}); {_remedy(better, task)}")


def better_normalization(model: Model, data: DataSource, task: Task) -> str | None:
    """What to tell where another normalisation does clearly better than the one that was assumed; else None.

    200 samples of the validation split are looked at, evenly spaced. Clearly is by McNemar's test for classes, and by
    the paired interval of what else is measured.
    """
    assert model.info.normalization is not None
    judge, split = _plain(task), some_of(data.val, _FEW_SAMPLES)
    own = _outcomes(model, split, model.info.normalization, judge)
    if own is None or (judge is task and task.guess(own) is None):
        return None
    best: tuple[MetricComparison, str] | None = None
    for name, other in other_normalizations(model, data).items():
        found = _outcomes(model, split, other, judge)
        compared = None if found is None else judge.compare(found, own)
        if compared and _is_clear(compared) and (best is None or judge.metric.better(compared.dense, best[0].dense)):
            best = (compared, name)
    if best is None:
        return None
    compared, name = best
    values = [judge.metric.shown(value) for value in (compared.dense, compared.slim)]
    samples = f"{len(own)} validation samples"
    got = f"{values[0]} of {samples} are right" if judge is not task else f"{task.metric.name} {values[0]} on {samples}"
    return f"these weights may have seen other inputs: with --normalize {name} {got}, as assumed {values[1]}"


def _is_clear(compared: MetricComparison) -> bool:
    """Whether the first is better than the second by more than chance."""
    if compared.drop <= 0:
        return False
    if compared.p_value is not None:
        return compared.p_value < _CLEARLY
    return compared.drop_interval is not None and compared.drop_interval[0] > 0


def _standing(model: Model, split: Dataset[object], normalization: Normalization, task: Task) -> Standing | None:
    """None where the task does not know what a guess comes to, or the samples are too few."""
    if isinstance(task, Classification):  # its labels tell more than whether answers are right
        return standing_of_classes(luck(*_answers(model, split, normalization)))
    outcomes = _outcomes(model, split, normalization, task)
    return None if outcomes is None else standing_of(task, outcomes)


def standing_of_classes(found: Luck) -> Standing:
    """A classifier beside guesses of the same frequencies as its own answers."""
    low, high = found.interval
    why = f"where guesses of the same frequencies give {low:.1%} to {high:.1%}"
    if found.spread < _CONSTANT:
        why = "as it always answers the same class"
    shown = f"{found.accuracy:.1%}"
    told = f"{_EXPECTED}, got {shown} right of {found.n_samples:,} samples, {why}"
    return Standing(found.accuracy, found.is_chance, shown, told)


def standing_of(task: Task, outcomes: Outcomes) -> Standing | None:
    """A network beside a guess; None where the task does not know what that comes to, or the samples are too few."""
    guess = task.guess(outcomes) if len(outcomes) >= FEWEST else None
    if guess is None:
        return None
    shown = _figure(guess)
    told = (
        f"{_EXPECTED}, got {shown} on {len(outcomes):,} samples, where one answer for all has "
        f"{guess.metric.shown(guess.guess)}"
    )
    return Standing(guess.value if guess.metric.higher_is_better else -guess.value, guess.is_chance, shown, told)


def _figure(guess: Guess) -> str:
    return f"{guess.metric.name} {guess.metric.shown(guess.value)}"


def _outcomes(model: Model, split: Dataset[object], normalization: Normalization, task: Task) -> Outcomes | None:
    """What the metric is made of, for each sample; None where the network itself says what is right."""
    if task.by_reference:
        return None
    found, _ = Judge(task, normalization).outcomes(Program.adopt(model.program).frozen_module(), split)
    return found


def _plain(task: Task) -> Task:
    """Classes are compared by how many samples are right, however the metric weighs them."""
    return CLASSIFICATION if isinstance(task, Classification) else task


def _remedy(better: dict[str, Standing], task: Task) -> str:
    if better:
        name = max(better, key=lambda one: better[one].worth)
        return f"--normalize {name} makes it {better[name].shown}"
    what = "classes" if isinstance(task, Classification) else "targets"
    return (
        f"give --normalize as the weights were trained, and the {what} in the order of that training; --allow-chance "
        "goes on nevertheless"
    )


def _answers(model: Model, split: Dataset[object], normalization: Normalization) -> Answers:
    """The predicted and the true classes of a split, int64 `(n_samples,)` each, in its order."""
    module = Program.adopt(model.program).frozen_module()
    indices = order(len(split), _BATCH)  # type: ignore[arg-type]
    answered = outputs_of(module, split, normalization, indices)
    pairs = [(scores(outputs).argmax(dim=1), CLASSIFICATION.targets(y)) for _, outputs, y in answered]
    predicted, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*pairs, strict=True))
    return predicted, labels
