"""Splits of the user's own making: what their code raises while samples are read is told by its file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

from edgeprune.data.featuredims import placed
from edgeprune.data.featurenames import with_names
from edgeprune.data.named import (
    NamedSamples,
    NamedSplit,
    described_inputs,
    held_tensor,
    input_of,
    measured_inputs,
    some_samples,
    spanned,
    target_of,
)
from edgeprune.data.splits import MAX_STATISTICS_SAMPLES, TensorSplit, each_split
from edgeprune.data.targets import spread_of
from edgeprune.records import DataSource, InputInfo, Targets
from edgeprune.usercode import calling_user_code


class UserSplit(Dataset[Any]):
    """A split that runs the user's code; `where` names what made it and the split, e.g. "data.py:load, train"."""

    def __init__(self, split: Any, where: str) -> None:
        self.split, self.where = split, where

    def __len__(self) -> int:
        with calling_user_code(f"{self.where}: its length raised"):
            return len(self.split)

    def __getitem__(self, index: int) -> Any:
        with calling_user_code(f"{self.where}: sample {index} raised"):
            return self.split[index]


def described(source: DataSource) -> DataSource:
    """The data set with what its targets are, where it does not say: by the first sample of train.

    Without names of classes they are no class labels. The spread of values is measured on some of train, evenly spaced.
    """
    return _with_targets(_with_inputs(_with_placed(source)))


def _with_placed(source: DataSource) -> DataSource:
    """With the mean and std that it states along the dim that has as many features."""
    if source.inputs or not source.input_shape:
        return source
    info = InputInfo("x", tuple(source.input_shape), feature_dim=source.feature_dim)
    return replace(source, normalization=placed(source.normalization, info))


def _with_inputs(source: DataSource) -> DataSource:
    """With what its named inputs are, where samples have such; they are measured on some of train."""
    if not len(source.train) or isinstance(source.train, (NamedSplit, NamedSamples)):  # type: ignore[arg-type]
        return source
    first = input_of(source.train[0])
    if not isinstance(first, Mapping) and not source.inputs:
        return source
    beside = {"feature_names": source.feature_names} if source.feature_names else {}
    infos = with_names(source.inputs or _infos(source, first), beside, f"data {source.name}")
    checked = each_split(source, lambda split, name: NamedSamples(split, infos, f"data {source.name}, {name}"))
    measured = measured_inputs(checked.train, infos)
    given = source.normalization if source.normalization.inputs else measured
    return replace(checked, input_shape=(), inputs=infos, feature_names=(), normalization=given, measured=measured)


def _infos(source: DataSource, first: Mapping[str, Any]) -> tuple[InputInfo, ...]:
    """What the inputs in samples of train are; a sample without such is told of when it is read."""
    samples = [x for x in some_samples(source.train, input_of) if isinstance(x, Mapping)]
    return tuple(_info(str(name), [sample.get(name) for sample in samples]) for name in first)


def _info(name: str, values: list[Any]) -> InputInfo:
    """What an input is, by some samples of it; their shape is that of the first."""
    tensors = [held_tensor(value, None, f"input {name}") for value in values if value is not None]
    [info] = described_inputs({name: tensors[0][None]})
    return info if info.is_float else spanned(info, tensors)


def _with_targets(source: DataSource) -> DataSource:
    if source.classes or source.targets != Targets() or not len(source.train):  # type: ignore[arg-type]
        return source
    n_samples = len(source.train)  # type: ignore[arg-type]
    chosen = np.unique(np.linspace(0, n_samples - 1, min(n_samples, MAX_STATISTICS_SAMPLES)).astype(int))
    first = target_of(source.train[0])
    if not _is_float(first):
        return replace(source, targets=Targets("none" if first is None else "other"))
    values = [np.asarray(torch.as_tensor(target_of(source.train[int(i)]))) for i in chosen]
    shape = values[0].shape
    if any(value.shape != shape for value in values):
        return replace(source, targets=Targets("other"))
    return replace(source, targets=Targets("values", () if shape == (1,) else shape, spread_of(np.stack(values))))


def _is_float(target: Any) -> bool:
    if target is None or isinstance(target, (Mapping, tuple, list, str)):
        return False
    return torch.as_tensor(target).is_floating_point()


def guarded(source: DataSource, where: str) -> DataSource:
    """The data set with its splits watched over; those that edgeprune made itself, and plain tensors, stay."""
    values = {field.name: getattr(source, field.name) for field in fields(DataSource)}
    for name in ("train", "val", "test"):
        if type(values[name]) not in (TensorSplit, TensorDataset):
            values[name] = _guarded(values[name], f"{where}, {name}")
    return DataSource(**values)


def _guarded(split: Any, where: str) -> Dataset[Any]:
    """The user's own code is watched over, what checks its samples is not."""
    if isinstance(split, NamedSplit):
        return split
    if isinstance(split, NamedSamples):
        return NamedSamples(UserSplit(split.split, where), split.infos, split.where, split.limits)
    return UserSplit(split, where)
