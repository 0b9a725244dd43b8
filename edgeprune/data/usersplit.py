"""Splits of the user's own making: what their code raises while samples are read is told by its file and line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch.utils.data import Dataset, TensorDataset

from edgeprune.data.splits import TensorSplit
from edgeprune.records import DataSource
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


def guarded(source: DataSource, where: str) -> DataSource:
    """The data set with its splits watched over; those that edgeprune made itself, and plain tensors, stay."""
    values = {field.name: getattr(source, field.name) for field in fields(DataSource)}
    for name in ("train", "val", "test"):
        if type(values[name]) not in (TensorSplit, TensorDataset):
            values[name] = UserSplit(values[name], f"{where}, {name}")
    return DataSource(**values)
