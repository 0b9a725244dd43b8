"""Splits held in memory: how they are stored, cut, checked and measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.errors import InputError
from edgeprune.records import CLASSES, DataSource, Normalization, Targets
from edgeprune.tasks.wanted import or_values

SPLIT_SEED = 20240229  # never the user's seed: train and compress must agree on what the test split is
MAX_STATISTICS_SAMPLES = 2000  # a lazily read set is measured on this many samples, evenly spaced
_CHUNK_ELEMENTS = 2**22  # of what is held as float64 at a time


class Taking(Dataset[Any], ABC):
    """A split that gives a whole batch at once, which needs no process to read ahead."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, index: Tensor) -> tuple[Tensor, Any]:
        """The samples at `index` `(k,)`: x float32 `(k, ...)` and y `(k, ...)`, or None."""

    @abstractmethod
    def renumbered(self, table: Tensor) -> Taking:
        """The same samples, class `k` of which is called `table[k]`."""


class TensorSplit(Taking):
    """A split in memory: `x` `(n, ...)` float32, or uint8 that is read as float32 times `scale`.

    `y` are the targets `(n, ...)`, e.g. classes int64 `(n,)`; None where there are none.
    """

    def __init__(self, x: Tensor, y: Tensor | None, scale: float = 1.0) -> None:
        self.x, self.y, self.scale = x, y, scale

    @property
    def byte_scale(self) -> float | None:
        """What a byte is multiplied by; None where the samples are no bytes."""
        return self.scale if self.x.dtype == torch.uint8 else None

    @property
    def labels(self) -> np.ndarray | None:
        """The targets `(n, ...)`, apart from the samples."""
        return None if self.y is None else self.y.numpy()

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x, y = self._raw(self.x[index]), None if self.y is None else self.y[index]
        return x, int(y) if y is not None and y.dim() == 0 and not y.is_floating_point() else y

    def take(self, index: Tensor) -> tuple[Tensor, Any]:
        return self._raw(self.x[index]), None if self.y is None else self.y[index]

    def renumbered(self, table: Tensor) -> TensorSplit:
        return TensorSplit(self.x, None if self.y is None else table[self.y], self.scale)

    def part(self, index: Tensor) -> TensorSplit:
        """The samples at `index` as a split of their own."""
        return TensorSplit(self.x[index], None if self.y is None else self.y[index], self.scale)

    def _raw(self, x: Tensor) -> Tensor:
        return x if x.dtype == torch.float32 and self.scale == 1.0 else x.to(torch.float32) * self.scale


class LazySplit(Dataset[Any]):
    """A split whose samples are read one by one: `dataset[i]` for `i` in `index`."""

    def __init__(self, dataset: Dataset[Any], index: np.ndarray) -> None:
        self.dataset, self.index = dataset, index

    @property
    def byte_scale(self) -> float | None:
        """What a byte is multiplied by; None where the samples are no bytes."""
        return getattr(self.dataset, "byte_scale", None)

    @property
    def labels(self) -> np.ndarray | None:
        """The targets `(n, ...)`, where they are known without reading samples."""
        held = getattr(self.dataset, "labels", None)
        return None if held is None else np.asarray(held)[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.index[index])]


def each_split(data: DataSource, change: Callable[[Dataset[Any], str], Dataset[Any]]) -> DataSource:
    """The data set with each of its splits changed, which is given together with its name."""
    train, val, test = (change(getattr(data, name), name) for name in ("train", "val", "test"))
    return replace(data, train=train, val=val, test=test)


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int = SPLIT_SEED) -> list[np.ndarray]:
    """Cut samples into parts that hold each class in the same proportion.

    Args:
        labels: int `(n,)`.
        fractions: share of each part, e.g. `(0.6, 0.2, 0.2)`; the first part takes what rounding leaves, so a class
            with a single sample is in it.

    Returns:
        One ascending index array per part.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        stop = len(members)
        for part, fraction in zip(reversed(parts[1:]), reversed(fractions[1:]), strict=True):
            start = stop - round(fraction * len(members))
            part.append(members[start:stop])
            stop = start
        parts[0].append(members[:stop])
    return [np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts]


def by_hash(labels: np.ndarray, hashes: np.ndarray, fractions: Sequence[float]) -> list[np.ndarray]:
    """Cut samples into parts by a hash of each, so that a sample stays in its part when others are added.

    Args:
        labels: int `(n,)`; of a class that no sample of is in the first part, the one of the least hash goes there.
        hashes: uint64 `(n,)`, of what never changes of a sample, such as its name.
        fractions: share of each part, about.

    Returns:
        One ascending index array per part.
    """
    part = np.searchsorted(np.cumsum(fractions)[:-1], hashes.astype(np.float64) / 2.0**64, side="right")
    for label in np.setdiff1d(labels, labels[part == 0]):
        members = np.flatnonzero(labels == label)
        part[members[hashes[members].argmin()]] = 0
    return [np.flatnonzero(part == number) for number in range(len(fractions))]


def parts_of_groups(labels: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Which samples are in train, val and test, of groups that lie one after the other.

    One group is cut 60/20/20; of two the second is the test split, and a tenth of the first is held out.
    """
    ends = np.cumsum(counts)
    first = stratified(labels[: ends[0]], {1: (0.6, 0.2, 0.2), 2: (0.9, 0.1), 3: (1.0,)}[len(counts)])
    return [*first, *(np.arange(start, end) for start, end in zip(ends[:-1], ends[1:], strict=True))]


def cut(x: Tensor, y: Tensor | None, fractions: Sequence[float], scale: float = 1.0) -> list[TensorSplit]:
    """Parts of the samples `x` `(n, ...)` with targets `y` `(n, ...)`; by classes, where these are int `(n,)`."""
    parts = parts_of(len(x), y, fractions)
    return [TensorSplit(x, y, scale).part(part) for part in parts]


def parts_of(n_samples: int, y: Tensor | None, fractions: Sequence[float]) -> list[Tensor]:
    """Which samples are in each part; by classes, where the targets are int `(n,)`."""
    labels = np.zeros(n_samples, np.int64) if y is None or y.dim() != 1 or y.is_floating_point() else y.numpy()
    return [torch.from_numpy(part) for part in stratified(labels, fractions)]


def to_tensor(array: np.ndarray, where: str) -> tuple[Tensor, float]:
    """Samples `(n, ...)` as a tensor and the scale that makes them raw: bytes are read as 0..1, floats as they are.

    Raises:
        InputError: neither numbers nor finite; names the first bad sample.
    """
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)), 1.0 / 255.0
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where}: expected real numbers, got {array.dtype}")
    if array.dtype.kind == "f":
        check_finite(array, where)
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{where}: expected values that float32 holds, up to 3.4e38, got {np.abs(array).max():g}")
    return torch.from_numpy(x), 1.0


def check_finite(x: np.ndarray, where: str) -> None:
    """Raise InputError at the first NaN or infinite value of `x` `(n, ...)`."""
    finite = np.isfinite(x)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(f"{where}: expected finite values, got {x[index]} at index {list(index)}")


def measure(split: Dataset[Any], dim: int | None = None) -> Normalization:
    """Mean and std over a split, one per index of a dim of the batch, by default the first; std 0 is replaced by 1.

    Bytes of shape `(n, height, width)` are grey images without a channel dim, unless a dim is said: they take one mean
    and std.
    """
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    grey = dim is None and isinstance(split, TensorSplit) and split.x.dtype == torch.uint8 and split.x.dim() == 3
    along = dim or 1
    # Sums are taken of x - origin: a column of large, nearly equal values keeps its digits.
    origin: Tensor | None = None
    for x in _chunks(split):
        columns = x.reshape(1, -1) if grey else x.movedim(along, 0).reshape(x.shape[along], -1)
        columns = columns.double()
        origin = columns.mean(dim=1, keepdim=True) if origin is None else origin
        columns = columns - origin
        count += columns.shape[1]
        total = total + columns.sum(dim=1)
        squares = squares + columns.square().sum(dim=1)
    if origin is None:
        raise InputError("the train split is empty")
    shift = total / count
    std = (squares / count - shift.square()).clamp(min=0).sqrt()
    # What rounding leaves of a constant column is not a spread.
    mean = shift + origin.squeeze(1)
    std = torch.where(std > 1e-9 * mean.abs().clamp(min=1e-30), std, torch.ones_like(std))
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()), dim=along)


def _chunks(split: Dataset[Any]) -> Iterator[Tensor]:
    if isinstance(split, Taking):
        n_rows = max(1, _CHUNK_ELEMENTS // max(1, split[0][0].numel())) if len(split) else 1
        for start in range(0, len(split), n_rows):
            yield split.take(torch.arange(start, min(start + n_rows, len(split))))[0]
        return
    n_samples = len(split)  # type: ignore[arg-type]
    chosen = np.unique(np.linspace(0, n_samples - 1, min(n_samples, MAX_STATISTICS_SAMPLES)).astype(int))
    for index in chosen:
        yield split[int(index)][0].unsqueeze(0)


def check_parts(name: str, splits: Sequence[Dataset[Any]], classes: Sequence[str], targets: Targets) -> None:
    """Raise InputError for an empty split among train, val and test, or for fewer than two classes."""
    if targets.kind == "classes" and len(classes) < 2:
        raise InputError(f"{name}: expected at least 2 classes, got {len(classes)}")
    for split_name, split in zip(("train", "val", "test"), splits, strict=True):
        if len(split) == 0:  # type: ignore[arg-type]
            total = sum(len(part) for part in splits)  # type: ignore[arg-type, misc]
            raise InputError(
                f"{name}: the {split_name} split is empty; expected at least one sample there, got {total} in all: "
                f"too few to cut, so give more of each class, or the splits themselves"
                f"{or_values(classes) if targets.kind == 'classes' else ''}"
            )


def build(  # noqa: PLR0913 - the fields of a DataSource
    name: str,
    splits: Sequence[Dataset[Any]],
    classes: Sequence[str],
    feature_names: Sequence[str] = (),
    notes: Sequence[str] = (),
    targets: Targets = CLASSES,
    preparation: Mapping[str, Any] | None = None,
    feature_dim: int | None = None,
) -> DataSource:
    """A DataSource from train, val and test; the normalisation is measured on train, along the features' dim or dim 1.

    Raises:
        InputError: an empty split, fewer than two classes, or samples without a feature dim.
    """
    check_parts(name, splits, classes, targets)
    train, val, test = splits
    shape = tuple(train[0][0].shape)
    if not shape or 0 in shape:
        raise InputError(f"{name}: expected samples with at least one feature, got shape {shape}")
    measured = measure(train, feature_dim)
    return DataSource(
        name=name,
        train=train,
        val=val,
        test=test,
        input_shape=shape,
        classes=tuple(classes),
        normalization=measured,
        measured=measured,
        feature_names=tuple(feature_names),
        byte_scale=getattr(train, "byte_scale", None),
        notes=tuple(notes),
        targets=targets,
        preparation=preparation or {},
        feature_dim=feature_dim,
    )


def spaced(n_samples: int, count: int) -> np.ndarray:
    """At most `count` of the samples of a split, evenly spaced, int64 `(n,)`."""
    if n_samples <= count:
        return np.arange(n_samples)
    return np.linspace(0, n_samples - 1, count).astype(np.int64)


def some_of(split: Dataset[Any], count: int) -> Dataset[Any]:
    """A split of at most `count` samples, evenly spaced."""
    n_samples = len(split)  # type: ignore[arg-type]
    return split if n_samples <= count else LazySplit(split, spaced(n_samples, count))
