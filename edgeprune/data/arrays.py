"""Data sets from arrays: .npz files, and what a factory returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data.featurenames import class_names, feature_dim, is_beside, lone_names
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


def open_npz(file: str, wanted: WantedTargets | None = None, features: str | None = None) -> DataSource:
    """A .npz file with `x` and `y`, or `x_train`, `y_train` and the same for `test` and, if wanted, `val`.

    `x` is `(n, ...)`, floats as they are or bytes that are read as 0..1; `y` holds the targets, as `found_targets`
    takes them, and may be left out; `class_names` and `feature_names` are texts, see `featurenames`. `X` is taken for
    `x`. `x` and `y` alone are cut 60/20/20. Without `x`, or where inputs are wanted by name, every other array is an
    input of its name, see `namedarrays`. Sizes are checked in the headers before any array is read. `features` is the
    dim of x that its features lie along, the batch being dim 0: a number, or `last`.
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
        names = class_names(arrays, str(path)), lone_names(arrays, str(path))
        return from_arrays(f"npz:{file}", pairs(arrays, str(path)), *names, wanted, features)
    if features is not None:
        raise InputError(f"{path}: expected features={features} beside x alone, got it beside inputs by name")
    return named_source(f"npz:{file}", arrays, str(path), wanted)


def named_source(name: str, arrays: Mapping[str, Any], where: str, wanted: WantedTargets | None) -> DataSource:
    """A data set from arrays by the names of the network's inputs, `y`, and the names of classes and features."""
    inputs = {key: array for key, array in arrays.items() if not is_beside(key)}
    return from_named(name, named_parts(inputs, where), class_names(arrays, where), wanted, arrays)


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
    dim = feature_dim(features, shape, len(feature_names), name)
    splits = _three(tensors, name)
    return build(name, splits, found.classes, feature_names, notes=found.notes, targets=found.info, feature_dim=dim)


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
    wanted = {"x", "y", "class_names", "feature_names", "feature_names_x"} | {
        f"{kind}_{split}" for kind in "xy" for split in _SPLITS
    }
    keys = [key for key in found if key.lower() in wanted]
    if not keys:
        got = one_line(", ".join(list(found)[:8]), 80) or "none"
        raise InputError(f"{path}: expected arrays x and y, or x_train, y_train, x_test, y_test; got {got}")
    return keys


def _plain(key: str, named: bool) -> str:
    """The name of an array; of a lone x and what stands beside it without a capital."""
    return key if named else key.lower()
