"""Whether a network tells the classes of its data apart at all: what is measured on one that does not means nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data import order
from edgeprune.data.splits import some_of
from edgeprune.errors import InputError
from edgeprune.formats.normalizing import other_normalizations
from edgeprune.formats.pretrained import option_text
from edgeprune.graph.capture import Program
from edgeprune.records import IDENTITY, DataSource, Model, Normalization
from edgeprune.tasks.classification import CLASSIFICATION, scores
from edgeprune.tasks.intervals import Luck, compare_accuracy, luck
from edgeprune.training import outputs_of

_BATCH = 512
_MOST_SAMPLES = 1000
_FEW_SAMPLES = 200  # to look whether another normalisation would do better
_CLEARLY = 0.01  # p of McNemar's test
_CONSTANT = 1e-6  # spread of what is right: none, but for rounding

Answers = tuple[np.ndarray, np.ndarray]


def check_above_chance(model: Model, data: DataSource) -> None:
    """Raise InputError where the network is no better than guessing on the validation split.

    At most 1,000 samples are looked at, evenly spaced. The message says which other normalisation would do better.
    """
    assert model.info.normalization is not None
    split = some_of(data.val, _MOST_SAMPLES)
    found = luck(*_answers(model, split, model.info.normalization))
    if not found.is_chance:
        return
    tried = {name: luck(*_answers(model, split, one)) for name, one in other_normalizations(model, data).items()}
    better = {name: one.accuracy for name, one in tried.items() if not one.is_chance and one.accuracy > found.accuracy}
    how = "as the data hold them" if model.info.normalization == IDENTITY else option_text(model.info.normalization)
    raise InputError(f"data {data.name}: {chance_text(found, 'the network')} (inputs {how:.60}); {_remedy(better)}")


def better_normalization(model: Model, data: DataSource) -> str | None:
    """What to tell where another normalisation does clearly better than the one that was assumed; else None.

    200 samples of the validation split are looked at, evenly spaced.
    """
    assert model.info.normalization is not None
    split = some_of(data.val, _FEW_SAMPLES)
    predicted, labels = _answers(model, split, model.info.normalization)
    own = predicted == labels
    best: tuple[float, str] | None = None
    for name, other in other_normalizations(model, data).items():
        compared = compare_accuracy(_answers(model, split, other)[0] == labels, own)
        if compared.drop_points > 0 and compared.mcnemar_p < _CLEARLY and (best is None or compared.dense > best[0]):
            best = (compared.dense, name)
    if best is None:
        return None
    return (
        f"these weights may have seen other inputs: with --normalize {best[1]} {best[0]:.1%} of {len(own)} validation "
        f"samples are right, as assumed {own.mean():.1%}"
    )


def chance_text(found: Luck, what: str) -> str:
    """E.g. "expected the network to do better than guessing, got 12.0% right of 100 samples, where guesses ..."."""
    low, high = found.interval
    why = f"where guesses of the same frequencies give {low:.1%} to {high:.1%}"
    if found.spread < _CONSTANT:
        why = "as it always answers the same class"
    got = f"{found.accuracy:.1%} right of {found.n_samples:,} samples, {why}"
    return f"expected {what} to do better than guessing, got {got}"


def _remedy(better: dict[str, float]) -> str:
    if better:
        name = max(better, key=lambda one: better[one])
        return f"--normalize {name} makes it {better[name]:.1%}"
    return (
        "give --normalize as the weights were trained, and the classes in the order of that training; --allow-chance "
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
