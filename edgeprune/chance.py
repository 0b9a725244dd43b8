"""Whether a network tells the classes of its data apart at all: what is measured on one that does not means nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset

from edgeprune.data.splits import LazySplit
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.normalizing import other_normalizations
from edgeprune.records import DataSource, Model, Normalization
from edgeprune.statistics import Luck, luck
from edgeprune.training import answers

_MOST_SAMPLES = 1000
_CONSTANT = 1e-6  # spread of what is right: none, but for rounding


def check_above_chance(model: Model, data: DataSource) -> None:
    """Raise InputError where the network is no better than guessing on the validation split.

    At most 1,000 samples are looked at, evenly spaced. The message says which other normalisation would do better.
    """
    assert model.info.normalization is not None
    split = data.val
    n_samples = len(split)  # type: ignore[arg-type]
    if n_samples > _MOST_SAMPLES:
        split = LazySplit(split, np.linspace(0, n_samples - 1, _MOST_SAMPLES).astype(int))
    found = _luck(model, split, model.info.normalization)
    if not found.is_chance:
        return
    better = [
        f"--normalize {name} makes it {one.accuracy:.1%}"
        for name, one in _others(model, data, split)
        if not one.is_chance and one.accuracy > found.accuracy
    ]
    raise InputError(f"data {data.name}: {chance_text(found, 'the network')}; {_remedy(better)}")


def chance_text(found: Luck, what: str) -> str:
    """E.g. "expected the network to do better than guessing, got 12.0% right of 100 samples, where guesses ..."."""
    low, high = found.interval
    why = f"where guesses of the same frequencies give {low:.1%} to {high:.1%}"
    if found.spread < _CONSTANT:
        why = "as it always answers the same class"
    got = f"{found.accuracy:.1%} right of {found.n_samples:,} samples, {why}"
    return f"expected {what} to do better than guessing, got {got}"


def _remedy(better: list[str]) -> str:
    if better:
        return " and ".join(better)
    return (
        "give --normalize as the weights were trained, and the classes in the order of that training; --allow-chance "
        "goes on nevertheless"
    )


def _others(model: Model, data: DataSource, split: Dataset[object]) -> Iterator[tuple[str, Luck]]:
    for name, normalization in other_normalizations(model, data).items():
        yield name, _luck(model, split, normalization)


def _luck(model: Model, split: Dataset[object], normalization: Normalization) -> Luck:
    return luck(*answers(Program.adopt(model.program).frozen_module(), split, normalization))
