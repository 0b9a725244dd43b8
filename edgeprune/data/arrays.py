"""Data sets from arrays: .npz files, and what a factory returns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data.limits import check_unpacked
from edgeprune.data.namedarrays import from_named, is_named, named_parts
from edgeprune.data.npy import members, read_array
from edgeprune.data.splits import TensorSplit, build, cut, to_tensor
from edgeprune.data.targets import found_targets
from edgeprune.errors import InputError
from edgeprune.lines import one_line
from edgeprune.reading import open_file
from edgeprune.records import DataSource
from edgeprune.tasks.wanted import WantedTargets

Pair = tuple[np.ndarray, np.ndarray | None]  # None: no targets
_Samples = tuple[torch.Tensor, torch.Tensor | None, float]
_SPLITS = ("train", "val", "test")
NAMES = ("class_names", "feature_names")


def open_npz(file: str, wanted: WantedTargets | None = None, features: str | None = None) -> DataSource:
    """A .npz file with `x` and `y`, or `x_train`, `y_train` and the same for `test` and, if wanted, `val`.

    `x` is `(n, ...)`, floats as they are or bytes that are read as 0..1; `y` holds the targets, as `found_targets`
    takes them, and may be left out; `class_names` and `feature_names` are texts. `X` is taken for `x`. `x` and `y`
    alone are cut 60/20/20. Without `x`, or where inputs are wanted by name, every other array is an input of its name,
    see `namedarrays`. Sizes are checked in the headers before any array is read. `features` is the dim of x that its
    features lie along, the batch being dim 0: a number, or `last`.
    """
    path = Path(file)
    with open_file(path, "npz") as stream:
        archive, found = members(stream, path)
        named = is_named(found, wanted)
        keys = list(found) if named else _wanted(found, path)
        infos = [found[key] for key in keys]
        check_unpacked(sum(i.file_size for i in infos), sum(i.compress_size for i in infos), str(path))
        arrays = {_plain(key, named): read_array(archive, found[key], f"{path}, {key}") for key in keys}
    if not named:
        return from_arrays(f"npz:{file}", pairs(arrays, str(path)), *names_in(arrays, str(path)), wanted, features)
    if features is not None:
        raise InputError(f"{path}: expected features={features} beside x alone, got it beside inputs by name")
    return named_source(f"npz:{file}", arrays, str(path), wanted)


def named_source(name: str, arrays: Mapping[str, np.ndarray], where: str, wanted: WantedTargets | None) -> DataSource:
    """A data set from arrays by the names of the network's inputs, `y`, and `class_names` beside them."""
    classes = classes_beside(names_in(arrays, where), where)
    inputs = {key: array for key, array in arrays.items() if key not in NAMES}
    return from_named(name, named_parts(inputs, where), classes, wanted)


def classes_beside(names: tuple[tuple[str, ...], tuple[str, ...]], where: str) -> tuple[str, ...]:
    """The names of the classes beside inputs by name, which have no names of features.

    Raises:
        InputError: there are names of features, of which nobody says whose they are.
    """
    if names[1]:
        raise InputError(f"{where}: expected feature_names beside x alone, got them beside inputs by name")
    return names[0]


def pairs(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Pair]:
    """Split name -> (x, y or None), from arrays `x`, `y` (the split is then called "all") or `x_train` to `y_test`."""
    found: dict[str, Pair] = {}
    for split, suffix in {"all": "", **{name: f"_{name}" for name in _SPLITS}}.items():
        x, y = arrays.get(f"x{suffix}"), arrays.get(f"y{suffix}")
        if x is None and y is not None:
            raise InputError(f"{where}: expected x{suffix} and y{suffix}, got y{suffix} alone")
        if x is not None:
            found[split] = (x, y)
    if not found:
        raise InputError(f"{where}: expected arrays x and y, or x_train, y_train, x_test, y_test; got none of them")
    return found


def names_in(arrays: Mapping[str, np.ndarray], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the classes and those of the features, from `class_names` and `feature_names`; empty without them.

    Raises:
        InputError: they are no list of texts, or hold one twice.
    """
    found = []
    for key in NAMES:
        names = np.asarray(arrays.get(key, np.empty(0, "U1")))
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise InputError(f"{where}: expected {key} as texts (n,), got {names.dtype} {names.shape}")
        texts = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist())
        counts = Counter(texts)
        twice = next((name for name in texts if counts[name] > 1), None)
        if twice is not None:
            raise InputError(f"{where}: expected each of {key} once, got {twice[:60]!r} more often")
        found.append(texts)
    return found[0], found[1]


def from_arrays(  # noqa: PLR0913 - what a data set is made of
    name: str,
    parts: Mapping[str, Pair],
    classes: tuple[str, ...] = (),
    feature_names: tuple[str, ...] = (),
    wanted: WantedTargets | None = None,
    features: str | None = None,
) -> DataSource:
    """A data set from split name -> (x, y): "all", or "train" with "val" or "test" or both; y None without targets.

    `classes` are the names of classes or flags, which int labels count in; `feature_names` those of the columns,
    channels or sensors, one for each index of a dim, or those of the flattened input. `features` is as for `open_npz`;
    else the dim that there are as many names for is the features' one.

    Where one of val and test is missing, the other is the test split and a tenth of train is held out.

    Raises:
        InputError: parts that do not make three splits, x and y of different lengths, shapes that differ between
            splits, targets that are not what is wanted (see `found_targets`), NaN or infinite values.
    """
    found = found_targets({split: y for split, (_, y) in parts.items()}, name, classes, wanted)
    tensors = {split: _samples(x, found.values[split], f"{name}, {split}") for split, (x, _) in parts.items()}
    shapes = {split: tuple(x.shape[1:]) for split, (x, _, _) in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{name}: expected samples of one shape in every split, got {shapes}")
    shape = next(iter(shapes.values()))
    dim = _feature_dim(features, shape, len(feature_names), name)
    splits = _three(tensors, name)
    return build(name, splits, found.classes, feature_names, notes=found.notes, targets=found.info, feature_dim=dim)


def _feature_dim(asked: str | None, shape: tuple[int, ...], n_names: int, where: str) -> int | None:
    """The dim of a batch that features lie along, as asked or by their names; None where neither tells one."""
    dims: Sequence[int] = range(1, len(shape) + 1)
    if asked is not None:
        dims = [dim for dim in dims if asked in (str(dim), "last" if dim == len(shape) else None)]
        if not dims:
            raise InputError(f"{where}: expected features=1 to {len(shape)} or last for inputs {shape}, got {asked!r}")
    fitting = [dim for dim in dims if n_names in (0, shape[dim - 1])]
    if not fitting and n_names != math.prod(shape):
        counts = dict.fromkeys((*(shape[dim - 1] for dim in dims), math.prod(shape)))
        expected = " or ".join(map(str, counts))
        raise InputError(f"{where}: expected {expected} feature names for inputs {shape}, got {n_names}")
    told = fitting if asked is None else dims
    return told[0] if len(told) == 1 else None


def _three(tensors: Mapping[str, _Samples], name: str) -> list[Dataset[object]]:
    splits = {split: TensorSplit(*samples) for split, samples in tensors.items()}
    if set(splits) == {"all"}:
        return list(cut(*tensors["all"][:2], (0.6, 0.2, 0.2), tensors["all"][2]))
    if "all" in splits or "train" not in splits or len(splits) == 1:
        raise InputError(f"{name}: expected x and y, or train with val or test, got {', '.join(splits)}")
    if len(splits) == 3:
        return [splits[split] for split in _SPLITS]
    x, y, scale = tensors["train"]
    return [*cut(x, y, (0.9, 0.1), scale), splits["test" if "test" in splits else "val"]]


def _samples(x: np.ndarray, y: torch.Tensor | None, where: str) -> _Samples:
    x = np.asarray(x)
    if x.ndim < 2 or (y is not None and len(x) != len(y)):
        n = "n" if y is None else len(y)
        raise InputError(f"{where}: expected x of shape ({n}, ...), one sample per label, got {x.shape}")
    if len(x) == 0:
        raise InputError(f"{where}: expected at least one sample, got none")
    tensor, scale = to_tensor(x, where)
    return tensor, y, scale


def _wanted(found: Mapping[str, object], path: Path) -> list[str]:
    """Names of the arrays to read."""
    wanted = {"x", "y", *NAMES} | {f"{kind}_{split}" for kind in "xy" for split in _SPLITS}
    keys = [key for key in found if key.lower() in wanted]
    if not keys:
        got = one_line(", ".join(list(found)[:8]), 80) or "none"
        raise InputError(f"{path}: expected arrays x and y, or x_train, y_train, x_test, y_test; got {got}")
    return keys


def _plain(key: str, named: bool) -> str:
    """The name of an array; without a capital where it is one of those that are known."""
    return key if named and key.lower() not in NAMES else key.lower()
