"""Folders of image files, one folder a class; images are read when they are needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from edgeprune.data.folders import ClassFiles, FileKind, PathList, check_inside, left_out, open_class_folder
from edgeprune.data.framing import Framing
from edgeprune.data.limits import need
from edgeprune.data.pixels import is_deep, peculiarities, to_pixels
from edgeprune.errors import InputError
from edgeprune.lines import error_line
from edgeprune.reading import Timed, open_file
from edgeprune.records import DataSource

MAX_PIXELS = 50_000_000  # of one file, checked in its header
MAX_SECONDS = 10.0  # of reading one file: a few bytes can stand for thousands of passes over an image
# Not whatever the library knows: some of its formats start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_MOST_LOOKED = 200  # headers of a folder's images, evenly spaced


class ImageFiles(ClassFiles):
    """Image files and their labels; a sample is x float32 `framing.shape` in 0..1 and y."""

    def __init__(self, framing: Framing, paths: PathList, labels: np.ndarray, skipped: Mapping[str, int]) -> None:
        self.paths, self.labels, self.framing = paths, labels, framing
        self.skipped = skipped
        self.notes, self.byte_scale = self._looked()

    def _looked(self) -> tuple[tuple[str, ...], float | None]:
        root = self.paths.root
        notes, byte_scale = looked_at(
            len(self),
            lambda index: opened(self.paths[index], root),
            lambda index: str(self.paths[index].relative_to(root)),
        )
        notes = (*notes, *left_out(self.skipped, "images"))
        return (*self.framing.notes, *notes), byte_scale

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


def open_image_folder(root: str, framing: Framing) -> DataSource:
    """Images in the folders of their classes, see `open_class_folder`."""
    kind = FileKind("images", EXTENSIONS, partial(ImageFiles, framing), framing.stated)
    return open_class_folder("imagefolder", root, kind)
