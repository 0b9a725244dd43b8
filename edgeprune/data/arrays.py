"""Data sets from arrays: .npz files, and what a factory returns."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeprune.data.labels import class_labels
from edgeprune.data.limits import check_file, check_size, check_unpacked
from edgeprune.data.splits import TensorSplit, build, cut, to_tensor
from edgeprune.errors import InputError
from edgeprune.records import DataSource

Pair = tuple[np.ndarray, np.ndarray]
_SPLITS = ("train", "val", "test")


def open_npz(file: str) -> DataSource:
    """A .npz file with `x` and `y`, or `x_train`, `y_train` and the same for `test` and, if wanted, `val`.

    `x` is `(n, ...)`, floats as they are or bytes that are read as 0..1; `y` holds the classes, as `class_labels` takes
    them. `X` is taken for `x`. `x` and `y` alone are cut 60/20/20. Sizes are checked in the headers before any array is
    read.
    """
    path = Path(file)
    check_file(path, "an .npz file")
    try:
        with path.open("rb") as stream:
            keys = _check_headers(stream, path)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {key.lower(): archive[key] for key in keys}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as an .npz file: {error}") from error
    return from_arrays(f"npz:{file}", pairs(arrays, str(path)))


def pairs(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Pair]:
    """Split name -> (x, y), from arrays named `x`, `y` (the split is then called "all") or `x_train`, ..., `y_test`."""
    found: dict[str, Pair] = {}
    for split, suffix in {"all": "", **{name: f"_{name}" for name in _SPLITS}}.items():
        has = [key for key in (f"x{suffix}", f"y{suffix}") if key in arrays]
        if len(has) == 1:
            raise InputError(f"{where}: expected x{suffix} and y{suffix}, got {has[0]} alone")
        if has:
            found[split] = (arrays[has[0]], arrays[has[1]])
    if not found:
        raise InputError(f"{where}: expected arrays x and y, or x_train, y_train, x_test, y_test; got none of them")
    return found


def from_arrays(name: str, parts: Mapping[str, Pair], classes: tuple[str, ...] = ()) -> DataSource:
    """A data set from split name -> (x, y): "all", or "train" with "val" or "test" or both.

    Where one of val and test is missing, the other is the test split and a tenth of train is held out.

    Raises:
        InputError: parts that do not make three splits, x and y of different lengths, shapes that differ between
            splits, labels that are no classes (see `class_labels`), NaN or infinite values.
    """
    labels = class_labels({split: y for split, (_, y) in parts.items()}, name, classes)
    tensors = {split: _samples(x, labels.indices[split], f"{name}, {split}") for split, (x, _) in parts.items()}
    shapes = {split: tuple(x.shape[1:]) for split, (x, _, _) in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{name}: expected samples of one shape in every split, got {shapes}")
    return build(name, _three(tensors, name), labels.classes, notes=labels.notes)


def _three(tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]], name: str) -> list[Dataset[object]]:
    splits = {split: TensorSplit(*samples) for split, samples in tensors.items()}
    if set(splits) == {"all"}:
        return list(cut(*tensors["all"][:2], (0.6, 0.2, 0.2), tensors["all"][2]))
    if "all" in splits or "train" not in splits or len(splits) == 1:
        raise InputError(f"{name}: expected x and y, or train with val or test, got {', '.join(splits)}")
    if len(splits) == 3:
        return [splits[split] for split in _SPLITS]
    x, y, scale = tensors["train"]
    return [*cut(x, y, (0.9, 0.1), scale), splits["test" if "test" in splits else "val"]]


def _samples(x: np.ndarray, y: np.ndarray, where: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    x = np.asarray(x)
    if x.ndim < 2 or len(x) != len(y):
        raise InputError(f"{where}: expected x of shape ({len(y)}, ...), one sample per label, got {x.shape}")
    if len(y) == 0:
        raise InputError(f"{where}: expected at least one sample, got none")
    tensor, scale = to_tensor(x, where)
    return tensor, torch.from_numpy(y), scale


def _check_headers(stream: IO[bytes], path: Path) -> list[str]:
    """Names of the arrays to read, their sizes checked against what the archive holds."""
    wanted = {"x", "y"} | {f"{kind}_{split}" for kind in "xy" for split in _SPLITS}
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        keys = [key for key in members if key.lower() in wanted]
        if len({key.lower() for key in keys}) < len(keys) or len(members) < len(archive.infolist()):
            raise InputError(f"{path}: expected each array once, got {', '.join(sorted(keys))}")
        check_size(sum(members[key].file_size for key in keys), str(path))
        for key in keys:
            _check_header(archive, members[key], f"{path}, {key}")
    if not keys:
        got = ", ".join(list(members)[:8]) or "none"
        raise InputError(f"{path}: expected arrays x and y, or x_train, y_train, x_test, y_test; got {got}")
    return keys


def _check_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> None:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: expected a stored or deflated array, got compression type {info.compress_type}")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise InputError(f"{where}: expected the npy format 1.0 or 2.0, got {version}")
        shape, _, dtype = readers[version](member)
        header_bytes = member.tell()
    if dtype.hasobject:
        raise InputError(f"{where}: expected an array of numbers, got Python objects, which need unpickling")
    n_bytes = math.prod(shape) * dtype.itemsize
    check_unpacked(n_bytes, info.compress_size, where)
    if header_bytes + n_bytes != info.file_size:
        raise InputError(f"{where}: the header promises {n_bytes:,} bytes, got {info.file_size - header_bytes:,}")
