"""From labels as people write them to class indices: ints from anywhere, texts, truth values, one-hot rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data.limits import MAX_CLASSES
from edgeprune.data.splits import Taking
from edgeprune.errors import InputError
from edgeprune.records import DataSource
from edgeprune.tasks.wanted import or_values

_SHOWN = 5
_PLUS_MINUS = (-1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class ClassLabels:
    """Class indices int64 `(n,)` of each split, the names of the classes, and what is to be told of them."""

    indices: dict[str, np.ndarray]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def class_labels(values: Mapping[str, np.ndarray], name: str, classes: Sequence[str] = ()) -> ClassLabels:
    """The classes are the values that occur, sorted, as in a CSV file: labels 1 to 3 are three classes.

    Args:
        values: of each split, `(n,)`, `(n, 1)` or one-hot `(n, n_classes)`.
        name: of the data set.
        classes: their names where they are known; labels are then ints from 0 that count in them.

    Raises:
        InputError: floats, labels below 0 that are not -1 and 1, more than MAX_CLASSES, or not as many as names.
    """
    flat, one_hot = _flat(values, name)
    if classes:
        return ClassLabels(_counted(flat, name, len(classes)), tuple(classes))
    unique = np.unique(np.concatenate([np.unique(value) for value in flat.values()]))
    _check_values(unique, flat, name)
    names = tuple(_name(value) for value in unique.tolist())
    indices = {split: np.searchsorted(unique, value).astype(np.int64) for split, value in flat.items()}
    notes: tuple[str, ...] = (f"labels are one-hot rows of {one_hot}",) if one_hot else ()
    if unique.dtype.kind in "iu" and unique.tolist() != list(range(len(unique))):
        notes += (f"the classes are the labels that occur: {_some(names)}",)
    return ClassLabels(indices, names, notes)


def _flat(values: Mapping[str, np.ndarray], name: str) -> tuple[dict[str, np.ndarray], int]:
    """Labels `(n,)` of each split, all of one kind, and the width of one-hot rows, or 0."""
    arrays = {split: _column(np.asarray(value)) for split, value in values.items()}
    widths = {y.shape[1] if is_one_hot(y) else 0 for y in arrays.values()}
    if len(widths) == 1 and widths != {0}:
        return {split: y.argmax(axis=1) for split, y in arrays.items()}, widths.pop()
    _check_kinds(arrays, name)
    return arrays, 0


def _check_kinds(arrays: Mapping[str, np.ndarray], name: str) -> None:
    for split, y in arrays.items():
        if y.ndim != 1 or y.dtype.kind not in "iubUS":
            raise InputError(f"{name}, {split}: {_expected(y)}")
    kinds = sorted({y.dtype.kind.replace("u", "i") for y in arrays.values()})
    if len(kinds) > 1:
        raise InputError(f"{name}: expected labels of one kind in every split, got {', '.join(kinds)}")


def _column(y: np.ndarray) -> np.ndarray:
    """`(n, 1)` as `(n,)`."""
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def _expected(y: np.ndarray) -> str:
    text = f"expected labels y as ints or texts (n,), the classes, got {y.dtype} {y.shape}"
    if y.dtype.kind != "f" or not y.size:
        return text
    shown = _some([f"{value:g}" for value in y.ravel()[:_SHOWN]])
    return f"{text} such as {shown}; if these are classes give them as ints, else as targets of a regression"


def is_one_hot(y: np.ndarray) -> bool:
    """Whether it holds rows with a single 1 among 0."""
    if y.ndim != 2 or y.shape[1] < 2 or not len(y) or y.dtype.kind not in "iubf":
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def _counted(flat: Mapping[str, np.ndarray], name: str, n_classes: int) -> dict[str, np.ndarray]:
    for split, value in flat.items():
        if value.dtype.kind not in "iu":
            raise InputError(f"{name}, {split}: expected labels as ints, numbers of the class names, got {value.dtype}")
        if value.size and not 0 <= value.min() <= value.max() < n_classes:
            wrong = value.min() if value.min() < 0 else value.max()
            raise InputError(f"{name}, {split}: expected labels from 0 to {n_classes - 1}, got {wrong}")
    return {split: value.astype(np.int64) for split, value in flat.items()}


def _check_values(unique: np.ndarray, flat: Mapping[str, np.ndarray], name: str) -> None:
    if len(unique) > MAX_CLASSES:
        wrong = f"{name}: expected at most {MAX_CLASSES:,} classes, got {len(unique):,} different labels"
        raise InputError(f"{wrong}{or_values(list(map(_name, unique.tolist())))}")
    if unique.dtype.kind == "i" and len(unique) and unique[0] < 0 and tuple(unique.tolist()) != _PLUS_MINUS:
        split, value = next((split, value) for split, value in flat.items() if value.min() == unique[0])
        raise InputError(
            f"{name}, {split}: expected labels from 0, got {unique[0]} at index {int(value.argmin())}; leave out "
            f"samples without a class{or_values(list(map(_name, unique.tolist())))}"
        )


def _name(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")


# -- another model's classes ---------------------------------------------------------------------------------------


def with_classes_of(data: DataSource, classes: Sequence[str], n_outputs: int | None) -> DataSource:
    """The data with the class indices of a model: by the names that it gives them, else by the number of its outputs.

    Data rarely hold every class that a model knows, or know them in its order. Ints that are fewer than the outputs are
    taken as the outputs' numbers; where neither fits, the data stay as they are.

    Example: labels 2, 3 and 7 of a network with ten outputs become those numbers, of classes "0" to "9".
    """
    names, why = tuple(classes), "the classes of the data are taken by their names, in the order of the model's"
    if not names and n_outputs is not None and len(data.classes) < n_outputs <= MAX_CLASSES:  # a file may state any
        names = tuple(map(str, range(n_outputs)))
        why = f"labels are the numbers of the network's {n_outputs} outputs"
    if data.targets.kind != "classes" or data.classes == names or not set(data.classes) <= set(names):
        return data
    place = {name: number for number, name in enumerate(names)}
    return _renumbered(data, [place[name] for name in data.classes], names, why)


def _renumbered(data: DataSource, numbers: Sequence[int], classes: Sequence[str], why: str) -> DataSource:
    table = torch.tensor(numbers, dtype=torch.int64)
    train, val, test = (_Renumbered.of(split, table) for split in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test, classes=tuple(classes), notes=(*data.notes, why))


class _Renumbered(Dataset[Any]):
    """A split whose class `k` is called `table[k]`."""

    def __init__(self, split: Dataset[Any], table: torch.Tensor) -> None:
        self.split, self.table = split, table

    @staticmethod
    def of(split: Dataset[Any], table: torch.Tensor) -> Dataset[Any]:
        if isinstance(split, Taking):
            return split.renumbered(table)
        return _Renumbered(split, table)

    @property
    def labels(self) -> np.ndarray | None:
        """The classes int64 `(n,)`, where they are known without reading samples."""
        held = getattr(self.split, "labels", None)
        return None if held is None else self.table.numpy()[np.asarray(held).reshape(-1).astype(np.int64)]

    def __len__(self) -> int:
        return len(self.split)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        x, y = self.split[index]
        return x, int(self.table[int(y)])
