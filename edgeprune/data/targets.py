"""What the targets in arrays are: classes, values, flags or masks, as the task wants them or as they look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.binarymasks import NOTE, from_binary, is_binary
from edgeprune.data.labels import class_labels, is_one_hot
from edgeprune.data.limits import MAX_CLASSES
from edgeprune.data.splits import check_finite
from edgeprune.errors import InputError
from edgeprune.records import CLASSES, TargetKind, Targets
from edgeprune.tasks.wanted import BINARY, WantedTargets

_KEPT = ("uint8", "int8", "int16", "int32", "int64")  # masks are held as they come, where PyTorch has the type

Arrays = Mapping[str, np.ndarray | None]


@dataclass(frozen=True, slots=True, eq=False)
class FoundTargets:
    """The targets `(n, ...)` of each split, what they are, the names of their classes, and what is to be told."""

    values: dict[str, Tensor | None]
    info: Targets
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def found_targets(
    arrays: Arrays, name: str, classes: Sequence[str] = (), wanted: WantedTargets | None = None
) -> FoundTargets:
    """The targets of a data set, as they are wanted or, where nothing is said, as they look:

        whole numbers or texts (n,), one-hot rows      classes
        floats                                         values
        rows (n, k) of 0 and 1                         flags
        whole numbers (n, height, width)               masks; of 0 and 255 alone, 255 is class 1
        no array                                       none

    Args:
        arrays: of each split, or None where it has no targets.
        name: of the data set.
        classes: names of the classes or flags, where they are known.

    Raises:
        InputError: targets in some splits alone, none in an array, of different shapes, or that are not what is wanted.
    """
    wanted = wanted or WantedTargets()
    given = _given(arrays, name)
    if not given:
        return FoundTargets(dict.fromkeys(arrays), Targets("none"))
    kind = _kind(given) if wanted.kind in (None, "none") else wanted.kind
    if kind == "values":
        return _values(given, name)
    if kind == "flags":
        return _flags(given, name, classes)
    return _masks(given, name, classes, wanted) if kind == "masks" else _classes(given, name, classes)


def _classes(given: Mapping[str, np.ndarray], name: str, classes: Sequence[str]) -> FoundTargets:
    labels = class_labels(given, name, classes)
    values = {split: torch.from_numpy(y) for split, y in labels.indices.items()}
    return FoundTargets({**values}, CLASSES, labels.classes, labels.notes)


def _given(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """The targets of all splits, or nothing where none has any."""
    given = {split: np.asarray(y) for split, y in arrays.items() if y is not None}
    if given and len(given) < len(arrays):
        lacking = ", ".join(split for split in arrays if split not in given)
        raise InputError(f"{name}: expected targets in every split or in none, got none in {lacking}")
    for split, y in given.items():
        if y.ndim == 0 or y.size == 0:
            raise InputError(
                f"{name}, {split}, targets: expected (n, ...) of at least one sample, got {y.dtype} {y.shape}"
            )
    return given


def _kind(given: Mapping[str, np.ndarray]) -> TargetKind:
    arrays = list(given.values())
    kinds = {y.dtype.kind for y in arrays}
    if not kinds <= set("iubf"):
        return "classes"
    if "f" not in kinds and all(y.ndim > 2 for y in arrays):
        return "masks"
    if all(map(_is_flags, arrays)):
        return "classes" if all(map(is_one_hot, arrays)) else "flags"
    return "values" if "f" in kinds else "classes"


def _is_flags(y: np.ndarray) -> bool:
    return y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all())


def _values(given: Mapping[str, np.ndarray], name: str) -> FoundTargets:
    shape = _one_shape(given, name)
    found: dict[str, Tensor | None] = {}
    for split, y in given.items():
        where = f"{name}, {split}, targets"
        if y.dtype.kind not in "iubf":
            raise InputError(f"{where}: expected numbers, got {y.dtype}")
        check_finite(y.astype(np.float64), where)
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(y, dtype=np.float32)
        check_finite(values, f"{where} as float32")
        found[split] = torch.from_numpy(values.reshape(len(y), *shape))
    train = next((given[split] for split in ("train", "all") if split in given), next(iter(given.values())))
    return FoundTargets(found, Targets("values", shape, spread_of(train.reshape(len(train), *shape))))


def spread_of(y: np.ndarray) -> tuple[float, ...]:
    """The standard deviation of values `(n, ...)`, one a column; that of a constant one is 1."""
    columns = y.astype(np.float64).reshape(len(y), y.shape[1] if y.ndim > 1 else 1, -1)
    stds = columns.std(axis=(0, 2))
    return tuple(float(std) if std > 0 and math.isfinite(std) else 1.0 for std in stds)


def _flags(given: Mapping[str, np.ndarray], name: str, classes: Sequence[str]) -> FoundTargets:
    for split, y in given.items():
        where = f"{name}, {split}, targets"
        if y.ndim != 2 or y.dtype.kind not in "iubf":
            raise InputError(f"{where}: expected rows (n, n_labels) of 0 and 1, got {y.dtype} {y.shape}")
        wrong = y[(y != 0) & (y != 1)]
        if wrong.size:
            raise InputError(f"{where}: expected rows of 0 and 1, got {wrong[0]:g}")
    shape = _one_shape(given, name, squeeze=False)
    if classes and len(classes) != shape[0]:
        raise InputError(f"{name}: expected {shape[0]} class_names, one a flag, got {len(classes)}")
    found = {split: torch.from_numpy(np.ascontiguousarray(y, np.float32)) for split, y in given.items()}
    return FoundTargets({**found}, Targets("flags", shape), tuple(classes) or tuple(map(str, range(shape[0]))))


def _masks(given: Mapping[str, np.ndarray], name: str, classes: Sequence[str], wanted: WantedTargets) -> FoundTargets:
    held = {split: _mask_values(y, f"{name}, {split}, masks") for split, y in given.items()}
    if not is_binary(held.values(), len(classes), wanted):
        return _of_classes(given, held, name, classes, wanted.ignore)
    given = {split: from_binary(y) for split, y in given.items()}
    held = {split: from_binary(values).astype(np.int64) for split, values in held.items()}
    found = _of_classes(given, held, name, classes or BINARY, None)
    return replace(found, notes=(*found.notes, NOTE))


def _mask_values(y: np.ndarray, where: str) -> np.ndarray:
    """The values in masks, ascending int64."""
    if y.ndim < 2 or y.dtype.kind not in "iub":
        raise InputError(f"{where}: expected whole numbers (n, height, width), got {y.dtype} {y.shape}")
    return np.unique(y).astype(np.int64)


def _of_classes(
    given: Mapping[str, np.ndarray],
    held: Mapping[str, np.ndarray],
    name: str,
    classes: Sequence[str],
    ignore: int | None,
) -> FoundTargets:
    """Masks whose numbers are the classes; `held` are the values in them."""
    found: dict[str, Tensor | None] = {}
    largest, ignored = -1, False
    for split, y in given.items():
        where, values = f"{name}, {split}, masks", held[split]
        kept = values[values != ignore] if ignore is not None else values
        ignored |= len(kept) < len(values)
        check_mask_values(kept, where, len(classes), ignore)
        largest = max(largest, int(kept.max(initial=-1)))
        found[split] = torch.from_numpy(np.ascontiguousarray(y, y.dtype if y.dtype.name in _KEPT else np.int64))
    n_classes = len(classes) or largest + 1
    if n_classes < 2:
        beside = f" beside {ignore}, which is ignored" * ignored
        raise InputError(f"{name}: expected masks of at least 2 classes, got {n_classes}{beside}")
    notes = (f"pixels of value {ignore} in the masks are ignored",) if ignored else ()
    shape = _one_shape(given, name, squeeze=False)
    return FoundTargets(found, Targets("masks", shape), tuple(classes) or tuple(map(str, range(n_classes))), notes)


def check_mask_values(kept: np.ndarray, where: str, n_named: int, ignore: int | None) -> None:
    """Raise InputError for a number of no class; of `n_named` where they have names, 0 where they have none."""
    most = n_named or MAX_CLASSES
    wrong = kept[(kept < 0) | (kept >= most)]
    if len(wrong):
        other = f", or {ignore}, which is ignored" if ignore is not None else ""
        raise InputError(f"{where}: expected values from 0 to {most - 1}{other}, got {int(wrong[0])}")


def _one_shape(given: Mapping[str, np.ndarray], name: str, squeeze: bool = True) -> tuple[int, ...]:
    """The shape of one target, `()` for `(n, 1)` too; InputError where splits differ."""
    shapes = {split: y.shape[1:] for split, y in given.items()}
    if squeeze:
        shapes = {split: () if shape == (1,) else shape for split, shape in shapes.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{name}: expected targets of one shape in every split, got {shapes}")
    return next(iter(shapes.values()))
