"""Folders of files, one folder a class: which files there are, of which class, and in which split."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from edgeprune.data.splits import LazySplit, build, stratified
from edgeprune.errors import InputError
from edgeprune.files import real_path
from edgeprune.records import DataSource

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


class PathList(Sequence[Path]):
    """Paths below a root in a run of bytes, e.g. `b"cat/1.pngcat/2.png"`: a million of them take some 30 MB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names, self._ends = bytearray(), array("q")

    def append(self, inner: str) -> None:
        """Add `root / inner`."""
        self._names += os.fsencode(inner)
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        position = range(len(self))[index]
        start = self._ends[position - 1] if position else 0
        return self.root / os.fsdecode(bytes(self._names[start : self._ends[position]]))


class ClassFiles(Dataset[Any], ABC):
    """The samples of some files, with their labels int `(n,)`, and what is to be told of them."""

    labels: np.ndarray
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Any, int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class FileKind:
    """A kind of files: what they are called, their suffixes, how features.json states what is made of them.

    `opened` makes samples of paths, their labels and what else lay there, counted by suffix.
    """

    noun: str
    suffixes: frozenset[str]
    opened: Callable[[PathList, np.ndarray, Mapping[str, int]], ClassFiles]
    stated: Mapping[str, Any]


def left_out(skipped: Mapping[str, int], noun: str) -> tuple[str, ...]:
    """What is told of files of other suffixes."""
    if not skipped:
        return ()
    counts = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in skipped.items())
    return (f"files are left out that are no {noun} by name ({counts:.80})",)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a ring of links is none, where `entry.is_dir()` raises OSError."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def check_inside(path: Path, root: Path) -> None:
    """Raise InputError when `path`, its links followed, leaves `root`."""
    found = real_path(path)
    if not found.is_relative_to(real_path(root)):
        raise InputError(f"{path}: expected a file inside {root}, got a link to {found}")


def open_class_folder(prefix: str, root: str, kind: FileKind) -> DataSource:
    """A folder with `train`, `val` and `test`, or `train` and `val`, or the classes themselves.

    Without `test`, `val` is the test split and a tenth of `train` is held out; the classes themselves are cut 60/20/20.
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"{prefix}: expected a folder of {kind.noun} at {base}, got nothing there")
    present = [name for name in ("train", "val", "test") if (base / name).is_dir()]
    name = f"{prefix}:{root}"
    if "train" not in present:
        classes = class_folders(base, base)
        files = _scan(base, base, classes, kind)
        _check_all_present(files, base, classes, kind)
        parts = [LazySplit(files, part) for part in stratified(files.labels, (0.6, 0.2, 0.2))]
        return build(name, parts, classes, notes=files.notes, preparation=kind.stated)
    if len(present) == 1:
        raise InputError(f"{base}: expected val or test beside train, got train alone")
    return _open_split_folder(name, base, present, kind)


def _open_split_folder(name: str, base: Path, present: Sequence[str], kind: FileKind) -> DataSource:
    classes = class_folders(base / "train", base)
    scanned = [_scan(base, base / part, classes, kind) for part in present]
    _check_all_present(scanned[0], base / "train", classes, kind)
    splits: list[Dataset[Any]] = [*scanned]
    if len(splits) == 2:
        splits = [*(LazySplit(scanned[0], part) for part in stratified(scanned[0].labels, (0.9, 0.1))), scanned[1]]
    notes = {text.partition(" (")[0]: text for files in reversed(scanned) for text in files.notes}
    return build(name, splits, classes, notes=tuple(notes.values()), preparation=kind.stated)


def _check_all_present(files: ClassFiles, folder: Path, classes: Sequence[str], kind: FileKind) -> None:
    """Raise InputError for a class without files: a network would get an output that nothing trains."""
    counts = np.bincount(files.labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise InputError(
            f"{folder}: expected {kind.noun} in every class folder, got none in {', '.join(empty[:5])}; delete what is "
            f"no class ({', '.join(sorted(kind.suffixes))} are read)"
        )


def class_folders(folder: Path, root: Path) -> list[str]:
    """Names of the class folders, sorted."""
    classes = sorted(entry.name for entry in os.scandir(folder) if is_folder(entry) and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: expected one folder per class, got none")
    for name in classes:
        check_inside(folder / name, root)
    return classes


def _scan(root: Path, folder: Path, classes: Sequence[str], kind: FileKind) -> ClassFiles:
    """Every file below the class folders of one split, in the order of their paths."""
    unknown = sorted(set(class_folders(folder, root)) - set(classes))
    if unknown:
        raise InputError(f"{folder}: expected the classes of train, got also {', '.join(unknown[:5])}")
    paths, counts = PathList(root), []
    skipped: Counter[str] = Counter()
    for name in classes:
        n_before = len(paths)
        if (folder / name).is_dir():  # of val and test a class may be missing
            add_files(paths, folder / name, kind.suffixes, skipped)
        counts.append(len(paths) - n_before)
    if not paths:
        raise InputError(f"{folder}: expected {kind.noun} ({', '.join(sorted(kind.suffixes))}), got none")
    return kind.opened(paths, np.repeat(np.arange(len(classes)), counts), skipped)


def add_files(paths: PathList, folder: Path, suffixes: frozenset[str], skipped: Counter[str]) -> None:
    """Add every file of some suffixes below `folder`, in the order of the parts of its path; hidden files are none."""
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_folder(entry):
                if entry.is_symlink():
                    raise InputError(f"{folder / entry.name}: linked folders are not followed; copy its files instead")
                folders.add(entry.name)
            elif entry.name.startswith("."):
                continue
            elif (suffix := os.path.splitext(entry.name)[1].lower()) not in suffixes:
                if entry.name.lower() not in _LEFT_BY_SYSTEMS:
                    skipped[suffix] += 1
                continue
            elif entry.is_symlink():
                check_inside(folder / entry.name, paths.root)  # a file that is no link lies where its folder does
            names.append(entry.name)
    inner = os.path.relpath(folder, paths.root)
    for name in sorted(names):
        if name in folders:
            add_files(paths, folder / name, suffixes, skipped)
        else:
            paths.append(f"{inner}/{name}")
