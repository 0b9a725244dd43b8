"""Input features chosen before the training, by chance or by mutual information, and data that hold these alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edgeprune.data.splits import TensorSplit
from edgeprune.errors import InputError
from edgeprune.records import DataSource

from .place import in_memory, with_splits


def random_features(data: DataSource, count: int, seed: int) -> np.ndarray:
    """So many of the features, drawn without replacement: ascending ints `(count,)`."""
    return np.sort(np.random.default_rng(seed).permutation(n_features(data))[:count])


def informative_features(data: DataSource, count: int) -> np.ndarray:
    """The features with the highest mutual information with the class, each by itself: ascending ints `(count,)`."""
    return np.sort(np.argsort(-_information(data), kind="stable")[:count])


def only(data: DataSource, kept: np.ndarray) -> DataSource:
    """The data set with these of its flattened features, `(len(kept),)` a sample.

    Raises:
        InputError: its features are not normalised alike.
    """
    if len(data.normalization.mean) > 1:
        raise InputError(f"{data.name}: expected one mean over all features, got {len(data.normalization.mean)}")
    index = torch.from_numpy(kept)
    fewer = with_splits(data, lambda _, split: TensorSplit(split.x.flatten(1)[:, index], split.y, split.scale))
    return replace(fewer, input_shape=(len(kept),))


def n_features(data: DataSource) -> int:
    """How many values a sample has."""
    return int(np.prod(data.input_shape))


@functools.cache
def _information(data: DataSource) -> np.ndarray:
    """Mutual information of each feature with the class on the train split, in nats; every value is a level.

    It depends on no seed, and scikit-learn's SelectKBest would take the highest of these too.
    """
    from sklearn.feature_selection import mutual_info_classif  # type: ignore[import-untyped]

    split = in_memory(data.train, data.name)
    found: np.ndarray = mutual_info_classif(split.x.flatten(1).numpy(), split.y.numpy(), discrete_features=True)
    return found


# -- how many units a number of parameters allows ---------------------------------------------------------------------


def units_sparsity(module: nn.Module, n_params: int) -> float:
    """The least share of all hidden units that has to go so that fully connected layers have at most `n_params`.

    Raises:
        InputError: one unit a layer has more than that.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    steps = max(widths[1:-1])
    for step in range(steps):
        share = step / steps
        if _n_params(_slimmer(widths, share)) <= n_params:
            return share
    raise InputError(f"{n_params} parameters: expected at least {_n_params(_slimmer(widths, 1.0))} for {widths}")


def _slimmer(widths: Sequence[int], share: float) -> list[int]:
    """The widths without this share of the hidden units, one of each layer left."""
    return [widths[0], *(max(1, width - round(share * width)) for width in widths[1:-1]), widths[-1]]


def _n_params(widths: Sequence[int]) -> int:
    return sum((before + 1) * width for before, width in zip(widths, widths[1:], strict=False))
