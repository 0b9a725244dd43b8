"""Input features: how the units of an input are counted, and which of them are tied together or always kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgeprune.errors import InputError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import FIXED
from edgeprune.graph.solve import Reason
from edgeprune.graph.sources import unit_sizes
from edgeprune.records import InputFeatures
from edgeprune.settings import FeatureRules

_UNREAD = -1


@dataclass(frozen=True, slots=True, eq=False)
class FeatureGrid:
    """The features of one input: `elements` int64 `(n_features, n)` are the ids of the elements of each.

    `units` int64 `(n_features,)` is the unit that a feature belongs to, 0 where it is locked and -1 where nothing reads
    it. `dim` is the dim whose indices the features are: 1 for channels and columns, 2 for the sensors of `(batch,
    steps, sensors)`; None where they are the elements of the flattened input.
    """

    elements: np.ndarray
    units: np.ndarray
    dim: int | None

    def __len__(self) -> int:
        return len(self.units)

    @property
    def told_dim(self) -> int | None:
        """The dim that the network tells features apart by; None where it tells none, or each element, apart."""
        return self.dim if (self.units != self.units[:1]).any() else None


def feature_grid(analysis: Analysis, name: str) -> FeatureGrid | None:
    """The features of input `name`, or None where its elements have no labels.

    Features count along the first dim that every unit fills whole slices of, else over the flattened input.
    """
    source = analysis.sources.get(("input", name, None))
    if source is None:
        return None
    node = next(node for node in analysis.program.graph.nodes if node.name == name)
    canonical = analysis.solver.canonical
    labels = canonical[source.ids]
    units = np.where(np.isin(labels, read_units(analysis)), labels, _UNREAD)
    sizes = node.meta["val"].shape[1:]
    for dim in (dim for dim, size in enumerate(sizes, 1) if isinstance(size, int)):
        places = feature_places(unit_sizes(sizes), dim)
        slices = units[places]
        if (slices == slices[:, :1]).all():
            return FeatureGrid(source.ids[places], slices[:, 0], dim)
    return FeatureGrid(source.ids.reshape(-1, 1), units, dim=None)


def read_units(analysis: Analysis) -> np.ndarray:
    """The units that something reads beside the inputs that they are of, and what is locked."""
    canonical = analysis.solver.canonical
    elsewhere = [canonical[source.ids] for source in analysis.sources.values() if source.kind != "input"]
    return np.concatenate([[FIXED], *elsewhere])


def feature_places(shape: Sequence[int], dim: int | None) -> np.ndarray:
    """Where the elements of each feature lie in a flattened input, int64 `(n_features, n)`, ascending in each.

    Args:
        shape: of the input, without the batch.
        dim: the dim of the batch that features are the indices of; None for those of the flattened input.
    """
    places = np.arange(math.prod(shape)).reshape(shape)
    return places.reshape(-1, 1) if dim is None else np.moveaxis(places, dim - 1, 0).reshape(shape[dim - 1], -1)


def slim_shape(shape: Sequence[Any], features: InputFeatures) -> tuple[Any, ...]:
    """The shape without the batch of what holds only the kept features; sizes that are free stay what they are."""
    n_kept, dim = len(features.keep), features.dim
    return (n_kept,) if dim is None else (*shape[: dim - 1], n_kept, *shape[dim:])


def feature_grids(analysis: Analysis) -> dict[str, FeatureGrid]:
    """The features of every input whose elements have labels."""
    names = [name for kind, name, _ in analysis.sources if kind == "input"]
    found = {name: feature_grid(analysis, name) for name in names}
    return {name: grid for name, grid in found.items() if grid is not None}


def feature_counts(analysis: Analysis) -> dict[str, int]:
    """How many features each input has that something reads."""
    return {name: int((grid.units >= 0).sum()) for name, grid in feature_grids(analysis).items()}


def whole_features(analysis: Analysis, n: int) -> int:
    """How many features come to at most `n`; a count above all of them is one of the numbers that they are made of.

    So features that lie along a later dim than the first, such as sensors of `(batch, steps, sensors)`, can be counted
    as those of the flattened input.
    """
    grids = feature_grids(analysis).values()
    n_features, n_numbers = sum(map(len, grids)), sum(grid.elements.size for grid in grids)
    is_along = any(grid.dim not in (1, None) for grid in grids)
    return max(1, n * n_features // n_numbers) if is_along and n_features < n <= n_numbers else n


def count_kept(counts: dict[str, int], cut: Mapping[str, InputFeatures]) -> int:
    """How many features are left of all inputs, which have so `counts` many before a cut."""
    return sum((counts | {name: len(features.keep) for name, features in cut.items()}).values())


def features_after(analysis: Analysis, name: str, keep: np.ndarray) -> InputFeatures | None:
    """The features of input `name` that are left of it for units `keep`, bool by label.

    None where no unit of it goes, or none has labels: features that nothing reads are nothing to cut by themselves.
    """
    grid = feature_grid(analysis, name)
    if grid is None or keep[grid.units[grid.units >= 0]].all():
        return None
    kept = np.flatnonzero((grid.units >= 0) & keep[grid.units])
    return InputFeatures(len(grid), tuple(kept.tolist()), grid.dim)


def apply_rules(analysis: Analysis, rules: FeatureRules) -> None:
    """Unite the features that come together, and lock those that are always kept.

    Raises:
        InputError: a rule names a feature that the inputs do not have, or the network has no such input.
    """
    if not rules.always_keep and not rules.together and not rules.prices:
        return
    features = _ruled_features(analysis, rules)
    node = next(node.name for node in analysis.program.graph.nodes if node.op == "placeholder")
    for group in rules.together:
        reason = Reason("goes together with a feature that is locked", node)
        for index in group[1:]:
            _unite(analysis, features[group[0]], features[index], reason)
    if rules.always_keep:
        reason = Reason("always kept", node, "leave the feature out of those that are always kept")
        analysis.solver.lock(torch.cat([features[index] for index in rules.always_keep]), reason)
    if analysis.solver.merge():
        analysis.solve()  # the values carry the labels of the last pass


def _unite(analysis: Analysis, one: torch.Tensor, other: torch.Tensor, reason: Reason) -> None:
    """Two features stand or fall together; of inputs that they lie otherwise in, all of their elements do."""
    if one.shape != other.shape:
        both = torch.cat([one, other])
        one, other = both[:1].expand_as(both), both
    analysis.solver.unite(one, other, reason)


def _ruled_features(analysis: Analysis, rules: FeatureRules) -> list[torch.Tensor]:
    """The labels of each feature's elements, one input after the other, which has all that the rules name."""
    grids = list(feature_grids(analysis).values())
    if not grids:
        raise InputError(
            "rules for input features: expected a network with inputs whose features can be removed, got none"
        )
    features = [own for grid in grids for own in torch.from_numpy(analysis.solver.canonical[grid.elements])]
    if rules.prices and len(rules.prices) != len(features):
        raise InputError(f"rules for input features: expected {len(features)} prices, got {len(rules.prices)}")
    highest = max((*rules.always_keep, *(index for group in rules.together for index in group)), default=0)
    if highest >= len(features):
        raise InputError(f"rules for input features: expected features below {len(features)}, got {highest}")
    return features
