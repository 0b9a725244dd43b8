"""What a folder says that Hugging Face's library has saved: its splits, their files, and the kinds of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.data.folders import check_inside
from edgeprune.data.limits import MAX_CLASSES
from edgeprune.data.table import some
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import read_json

_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_LISTS = ("Sequence", "List", "LargeList")
_NUMBERS = ("int", "uint", "float", "bool")


@dataclass(frozen=True, slots=True)
class Feature:
    """A column: `kind` is image, classes, number, text, list or other; `classes` are the names of a ClassLabel."""

    kind: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Saved:
    """The files of each split that there is, train first, and the columns that all of them have."""

    base: Path
    files: tuple[tuple[Path, ...], ...]
    features: Mapping[str, Feature]


def saved_in(base: Path) -> Saved:
    """What there is in a folder.

    Raises:
        InputError: nothing that `save_to_disk` made, or a damaged one; a file that leads out of it.
    """
    if not base.is_dir():
        raise InputError(f"hf: expected a folder that save_to_disk made at {base}, got nothing there")
    folders = _folders(base)
    features = [_features(folder) for folder in folders]
    for folder, own in zip(folders, features, strict=True):
        if own != features[0]:
            raise InputError(f"{folder}: expected the columns of {folders[0].name}, got others")
    return Saved(base, tuple(map(_files, folders)), features[0])


def _folders(base: Path) -> list[Path]:
    """The folder itself, or those of train, val and test."""
    if not (base / "dataset_dict.json").exists():
        return [base]
    names = _texts(_in(base / "dataset_dict.json").get("splits"), f"{base / 'dataset_dict.json'}: expected splits")
    known = {_SPLITS[name]: base / name for name in reversed(names) if name in _SPLITS}
    if "train" not in known:
        raise InputError(f"{base}: expected a split called train, got {some(names)}")
    found = [known[part] for part in ("train", "val", "test") if part in known]
    for folder in found:
        check_inside(folder, base)
    return found


def _files(folder: Path) -> tuple[Path, ...]:
    path = folder / "state.json"
    entries = _in(path).get("_data_files")
    stated = (
        [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    )
    names = _texts(stated, f"{path}: expected the names of its files")
    if any(Path(name).name != name for name in names):
        raise InputError(f"{path}: expected names of files beside it, got {some(names)}")
    paths = tuple(folder / name for name in names)
    for path in paths:
        check_inside(path, folder)
    return paths


def _features(folder: Path) -> dict[str, Feature]:
    path = folder / "dataset_info.json"
    stated = _in(path).get("features")
    if not isinstance(stated, dict) or not stated:
        raise InputError(f"{path}: expected features, got {shown(stated)}")
    return {name: _feature(value, f"{path}, {shown(name)}") for name, value in stated.items()}


def _feature(stated: Any, where: str) -> Feature:
    if not isinstance(stated, dict):  # a list or a dict of features inside each other
        return Feature("other")
    readers: Mapping[str, Callable[[Mapping[str, Any], str], Feature]] = {
        "Image": lambda _, __: Feature("image"),
        "ClassLabel": _class_label,
        "Value": lambda own, _: _value(own),
        **dict.fromkeys(_LISTS, lambda own, _: _list(own)),
    }
    reader = readers.get(str(stated.get("_type")))
    return Feature("other") if reader is None else reader(stated, where)


def _class_label(stated: Mapping[str, Any], where: str) -> Feature:
    names = _texts(stated.get("names"), f"{where}: expected the names of up to {MAX_CLASSES:,} classes")
    if len(names) > MAX_CLASSES:
        raise InputError(f"{where}: expected the names of up to {MAX_CLASSES:,} classes, got {len(names):,}")
    return Feature("classes", tuple(names))


def _value(stated: Mapping[str, Any]) -> Feature:
    dtype = str(stated.get("dtype"))
    if dtype.startswith(_NUMBERS):
        return Feature("number")
    return Feature("text" if dtype in ("string", "large_string") else "other")


def _list(stated: Mapping[str, Any]) -> Feature:
    inner = stated.get("feature")
    is_number = isinstance(inner, dict) and inner.get("_type") == "Value" and _value(inner).kind == "number"
    return Feature("list" if is_number else "other")


def _in(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    found = read_json(path, "hf")
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {shown(found)}")
    return found


def _texts(found: Any, expected: str) -> list[str]:
    """A list of texts, not empty."""
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
        raise InputError(f"{expected}, got {shown(found)}")
    return found
