"""Folders of image files, one folder a class; images are read when they are needed."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.data.framing import Framing
from edgeprune.data.limits import need
from edgeprune.data.pixels import is_deep, peculiarities, to_pixels
from edgeprune.data.splits import LazySplit, build, stratified
from edgeprune.errors import InputError
from edgeprune.lines import error_line
from edgeprune.reading import Timed, open_file
from edgeprune.records import DataSource

MAX_PIXELS = 50_000_000  # of one file, checked in its header
MAX_SECONDS = 10.0  # of reading one file: a few bytes can stand for thousands of passes over an image
# Not whatever the library knows: some of its formats start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_MOST_LOOKED = 200  # headers of a folder's images, evenly spaced
_NO_IMAGES = {"thumbs.db", "desktop.ini"}  # which a system leaves in folders


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


class ImageFiles(Dataset[Any]):
    """Image files and their labels; a sample is x float32 `framing.shape` in 0..1 and y."""

    def __init__(
        self, paths: PathList, labels: np.ndarray, framing: Framing, skipped: Mapping[str, int] | None = None
    ) -> None:
        self.paths, self.labels, self.framing = paths, labels, framing
        self.skipped = skipped or {}
        self.notes, self.byte_scale = self._looked()

    def _looked(self) -> tuple[tuple[str, ...], float | None]:
        root = self.paths.root
        notes, byte_scale = looked_at(
            len(self),
            lambda index: opened(self.paths[index], root),
            lambda index: str(self.paths[index].relative_to(root)),
        )
        if self.skipped:
            counts = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in self.skipped.items())
            notes = (*notes, f"files are left out that are no images by name ({counts:.80})")
        return (*self.framing.notes, *notes), byte_scale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(self.paths[index], self.paths.root, self.framing), int(self.labels[index])


def looked_at(
    n_images: int, opened_at: Callable[[int], AbstractContextManager[Any]], name_of: Callable[[int], str]
) -> tuple[tuple[str, ...], float | None]:
    """What is told of images, by the headers of some; and what a byte stands for, where all hold bytes."""
    notes: dict[str, str] = {}
    deep = False
    for index in map(int, np.unique(np.linspace(0, n_images - 1, min(n_images, _MOST_LOOKED)).astype(int))):
        with opened_at(index) as image:
            deep = deep or is_deep(image)
            for text in peculiarities(image):
                notes.setdefault(text, f"{text} (e.g. {name_of(index)})")
    return tuple(notes.values()), None if deep else 1.0 / 255.0


def read_image(path: Path, root: Path, framing: Framing) -> Tensor:
    """An image as float32 `framing.shape` in 0..1, see `edgeprune.data.pixels`.

    Raises:
        InputError: outside of `root`, not an image, damaged, of more than MAX_PIXELS, or of an unknown range.
    """
    with opened(path, root) as image:
        return to_pixels(image, framing, path)


@contextmanager
def opened(path: Path, root: Path) -> Iterator[Any]:
    """An image file whose header was read and found good; raises InputError as `read_image` does."""
    check_inside(path, root)
    with open_file(path, "image") as file, decoded(file, lambda: str(path)) as image:
        yield image


@contextmanager
def decoded(file: BinaryIO, where: Callable[[], str]) -> Iterator[Any]:
    """An image's bytes, its header read and found good; `where` says whose they are, for messages."""
    pil = need("PIL.Image", "'edgeprune[vision]'")
    try:
        with pil.open(Timed(file, MAX_SECONDS), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{where()}: expected at most {MAX_PIXELS:,} pixels, got {image.width}x{image.height}")
            yield image
    except InputError:
        raise
    except Exception as error:  # whatever a format's reader makes of a damaged file
        raise InputError(f"{where()}: expected an image, got {_without_object(error)}") from error


def _without_object(error: Exception) -> str:
    """What a format's reader says, without the address of the file's object in memory."""
    return re.sub(r" <[^<>]*object at 0x[0-9a-f]+>", "", error_line(error))


def check_inside(path: Path, root: Path) -> None:
    """Raise InputError when `path`, its links followed, leaves `root`."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path}: expected a file inside {root}, got a link to {path.resolve()}")


def open_image_folder(root: str, framing: Framing) -> DataSource:
    """A folder with `train`, `val` and `test`, or `train` and `val`, or the classes themselves.

    Without `test`, `val` is the test split and a tenth of `train` is held out; the classes themselves are cut 60/20/20.
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"imagefolder: expected a folder of images at {base}, got nothing there")
    present = [name for name in ("train", "val", "test") if (base / name).is_dir()]
    name = f"imagefolder:{root}"
    if "train" not in present:
        classes = class_folders(base, base)
        files = _scan(base, base, classes, framing)
        _check_all_present(files, base, classes)
        parts = [LazySplit(files, part) for part in stratified(files.labels, (0.6, 0.2, 0.2))]
        return build(name, parts, classes, notes=files.notes, preparation=framing.stated)
    if len(present) == 1:
        raise InputError(f"{base}: expected val or test beside train, got train alone")
    return _open_split_folder(name, base, present, framing)


def _open_split_folder(name: str, base: Path, present: Sequence[str], framing: Framing) -> DataSource:
    classes = class_folders(base / "train", base)
    scanned = [_scan(base, base / part, classes, framing) for part in present]
    _check_all_present(scanned[0], base / "train", classes)
    splits: list[Dataset[Any]] = [*scanned]
    if len(splits) == 2:
        splits = [*(LazySplit(scanned[0], part) for part in stratified(scanned[0].labels, (0.9, 0.1))), scanned[1]]
    notes = {text.partition(" (")[0]: text for files in reversed(scanned) for text in files.notes}
    return build(name, splits, classes, notes=tuple(notes.values()), preparation=framing.stated)


def _check_all_present(files: ImageFiles, folder: Path, classes: Sequence[str]) -> None:
    """Raise InputError for a class without images: a network would get an output that nothing trains."""
    counts = np.bincount(files.labels, minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise InputError(
            f"{folder}: expected images in every class folder, got none in {', '.join(empty[:5])}; delete what is no "
            f"class ({', '.join(sorted(EXTENSIONS))} are read)"
        )


def class_folders(folder: Path, root: Path) -> list[str]:
    """Names of the class folders, sorted."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: expected one folder per class, got none")
    for name in classes:
        check_inside(folder / name, root)
    return classes


def _scan(root: Path, folder: Path, classes: Sequence[str], framing: Framing) -> ImageFiles:
    """Every image below the class folders of one split, in the order of their paths."""
    unknown = sorted(set(class_folders(folder, root)) - set(classes))
    if unknown:
        raise InputError(f"{folder}: expected the classes of train, got also {', '.join(unknown[:5])}")
    paths, counts = PathList(root), []
    skipped: Counter[str] = Counter()
    for name in classes:
        n_before = len(paths)
        if (folder / name).is_dir():  # of val and test a class may be missing
            add_images(paths, folder / name, skipped)
        counts.append(len(paths) - n_before)
    if not paths:
        raise InputError(f"{folder}: expected images ({', '.join(sorted(EXTENSIONS))}), got none")
    return ImageFiles(paths, np.repeat(np.arange(len(classes)), counts), framing, skipped)


def add_images(paths: PathList, folder: Path, skipped: Counter[str]) -> None:
    """Add every image below `folder`, in the order of the parts of its path; hidden files are none."""
    names, folders = [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.is_symlink():
                    raise InputError(f"{folder / entry.name}: linked folders are not followed; copy its images instead")
                folders.add(entry.name)
            elif entry.name.startswith("."):
                continue
            elif (suffix := os.path.splitext(entry.name)[1].lower()) not in EXTENSIONS:
                if entry.name.lower() not in _NO_IMAGES:
                    skipped[suffix] += 1
                continue
            elif entry.is_symlink():
                check_inside(folder / entry.name, paths.root)  # a file that is no link lies where its folder does
            names.append(entry.name)
    inner = os.path.relpath(folder, paths.root)
    for name in sorted(names):
        if name in folders:
            add_images(paths, folder / name, skipped)
        else:
            paths.append(f"{inner}/{name}")
