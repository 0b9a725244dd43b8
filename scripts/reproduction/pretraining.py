"""Whether a network that was pretrained on other classes loses less when it is pruned."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from edgeprune.data.splits import TensorSplit
from edgeprune.records import DataSource

from .place import Place, in_memory, with_splits
from .sparsity import drop_smallest, zero_share, zeros_held
from .weightfiles import first_of

Figures = dict[str, float]
# A training before the cut, by all that it depends on: the points of a contender differ in what comes after it.
_TRAINED: dict[tuple[object, ...], nn.Module] = {}


def pretrained(  # noqa: PLR0913 - what a config may say, each with its default
    place: Place,
    sparsity: float | None = None,
    pretrain: int = 0,
    longer: int = 0,
    finetune: float = 0.4,
    samples: int | None = None,
    judged: int | None = None,
) -> Figures:
    """Train on all classes, after a pretraining on half of them, set the smallest weights to zero, finetune the rest.

    Args:
        sparsity: the share of the weights that is set to zero; None leaves the network as it is.
        pretrain: so many epochs on the first half of the classes come before, the network's head as it is.
        longer: so many epochs more are trained on all classes, to set against a pretraining.
        finetune: the share of the epochs that come after the cut, or in its place.
        samples: so many of the training images alone.
        judged: so many of the test images, and a quarter as many of the validation split's.
    """
    data = first_of(place.data, samples, judged)
    settings = place.settings()
    n_after = max(1, round(finetune * settings.epochs))
    key = (place.run.experiment, place.run.seed, place.run.quick, settings.epochs, pretrain, longer, n_after, samples)
    if key not in _TRAINED:
        _TRAINED[key] = _trained(place, data, (pretrain, settings.epochs - n_after + longer))
    module = copy.deepcopy(_TRAINED[key])
    if sparsity is not None:
        drop_smallest(module, sparsity)
    with zeros_held(module):
        place.fit(module, replace(settings, epochs=n_after), stage="finetune", data=data)
    return {**place.accuracies(module, data), "zero_share": zero_share(module)}


def _trained(place: Place, data: DataSource, epochs: tuple[int, int]) -> nn.Module:
    """A network after so many epochs on half of the classes, and so many on all."""
    module, settings = place.build(), place.settings()
    first, then = epochs
    if first:
        place.fit(module, replace(settings, epochs=first), stage="pretrain", data=half_of(data))
    place.fit(module, replace(settings, epochs=then), stage="train", data=data)
    return module


def half_of(data: DataSource) -> DataSource:
    """The samples of the first half of the classes, which keep their numbers."""
    n_kept = len(data.classes) // 2

    def kept(_: str, split: TensorSplit) -> TensorSplit:
        assert split.y is not None
        index = torch.nonzero(split.y < n_kept).flatten()
        return TensorSplit(split.x[index], split.y[index], split.scale)

    in_memory(data.train, data.name)
    return with_splits(data, kept)
