"""Images with a mask each, files of the same name in `images` and `masks`; both are read when they are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.data.binarymasks import NOTE, from_binary, is_binary
from edgeprune.data.folders import PathList, add_files, check_inside
from edgeprune.data.framing import Framing
from edgeprune.data.images import EXTENSIONS, ImageFiles, opened
from edgeprune.data.limits import need
from edgeprune.data.pixels import is_deep, is_turned
from edgeprune.data.places import split_folders
from edgeprune.data.splits import LazySplit, build, stratified
from edgeprune.data.targets import check_mask_values
from edgeprune.errors import InputError
from edgeprune.records import DataSource, Targets
from edgeprune.tasks.wanted import BINARY, WantedTargets

FOLDERS = ("images", "masks")
_IDS = ("1", "L", "P")  # modes of 8 bits whose numbers are ids; a palette's colours only show them


def has_masks(folder: Path) -> bool:
    """Whether a folder holds images beside masks, itself or in its `train`."""
    return any(all((place / name).is_dir() for name in FOLDERS) for place in (folder, folder / "train"))


def open_masked_folder(name: str, base: Path, framing: Framing, wanted: WantedTargets | None = None) -> DataSource:
    """A folder of `images` and `masks`, cut 60/20/20, or of `train`, `val` and `test` with both in each.

    A mask holds the number of a class for each pixel of the image of the same name. Without one of val and test, the
    other is the test split and a tenth of train is held out. All masks are looked at, for the classes that there are.

    Raises:
        InputError: an image without a mask or the other way round, of another size, or a mask of colours; a border
            beside images whose masks have no value that is ignored.
    """
    wanted = wanted or WantedTargets()
    border = _border(name, framing, wanted.ignore)
    found = [_paired(base, folder, framing, border) for folder in split_folders(base)]
    held = [_looked(files, wanted.ignore) for files in found]
    binary = is_binary(held, 0, wanted)
    if binary:
        found = [replace(files, is_binary=True) for files in found]
    classes, notes = (BINARY, (NOTE,)) if binary else _classes_of(held, wanted.ignore, base)
    targets, told = Targets("masks", framing.shape[1:]), (*_image_notes(found), *notes)
    return build(name, _three(found), classes, notes=told, targets=targets, preparation=framing.stated)


def _classes_of(held: Sequence[np.ndarray], ignore: int | None, base: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that the values of masks are the numbers of, and what is told of the others."""
    values = np.unique(np.concatenate(held))
    kept = values if ignore is None else values[values != ignore]
    n_classes, ignores = 1 + int(kept.max(initial=-1)), len(kept) < len(values)
    if n_classes < 2:
        beside = f" beside {ignore}, which is ignored" * ignores
        raise InputError(f"{base}: expected masks of at least 2 classes, got {n_classes}{beside}")
    told = (f"pixels of value {ignore} in the masks are ignored",) * ignores
    return tuple(map(str, range(n_classes))), told


def _border(name: str, framing: Framing, ignore: int | None) -> int:
    """What masks hold beside an image that does not fill its frame."""
    if ignore is None and framing.fit == "pad":
        raise InputError(
            f"{name}: expected masks of which a value is ignored, for the border of fit=pad, got ignore=none"
        )
    return ignore or 0


def _image_notes(found: Sequence[MaskedImages]) -> tuple[str, ...]:
    """What is told of the images of all splits, once; of a border in their masks too."""
    notes = [note for files in found for note in files.images.notes]
    if found[0].images.framing.fit == "pad":
        notes.append(f"the border of fit=pad is {found[0].border} in the masks, which is ignored")
    return tuple(dict.fromkeys(notes))


def _three(found: Sequence[MaskedImages]) -> list[Dataset[Any]]:
    if len(found) == 3:
        return [*found]
    fractions = (0.6, 0.2, 0.2) if len(found) == 1 else (0.9, 0.1)
    parts = stratified(np.zeros(len(found[0]), np.int64), fractions)
    return [*(LazySplit(found[0], part) for part in parts), *found[1:]]


@dataclass(frozen=True, slots=True, eq=False)
class MaskedImages(Dataset[Any]):
    """Images and their masks; a sample is x float32 `(channels, height, width)` in 0..1 and y int64 `(height, width)`.

    `border` is what a mask holds where its image does not fill the frame; `is_binary` masks hold 0 and 255.
    """

    images: ImageFiles
    masks: Sequence[Path]
    root: Path
    border: int
    is_binary: bool = False

    @property
    def byte_scale(self) -> float | None:
        """What a byte is multiplied by; None where the samples are no bytes."""
        return self.images.byte_scale

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        how = self.images.framing, self.border, self.is_binary
        return self.images[index][0], read_mask(self.masks[index], self.root, *how)


def read_mask(path: Path, root: Path, framing: Framing, border: int = 0, is_binary: bool = False) -> Tensor:
    """A mask as int64 `(height, width)`, framed as its image is, each pixel the number of the nearest.

    Raises:
        InputError: as `read_image`, or a mask of colours.
    """
    pil = need("PIL.Image", "'edgeprune[vision]'")
    numbers = numbers_of(path, root)
    whole = pil.fromarray((from_binary(numbers) if is_binary else numbers).astype(np.int32))
    framed = framing.framed(whole, pil.Resampling.NEAREST, border)
    return torch.from_numpy(np.array(framed)).long()


def numbers_of(path: Path, root: Path) -> np.ndarray:
    """The numbers `(height, width)` in a mask's file."""
    with opened(path, root) as image:
        if image.mode not in _IDS and not is_deep(image):
            raise InputError(
                f"{path}: expected a mask with the number of a class for each pixel (grey or with a palette), got "
                f"{image.mode}"
            )
        image.load()
        return np.asarray(image)


def _looked(files: MaskedImages, ignore: int | None) -> np.ndarray:
    """The values in all masks, ascending int64; each is looked at beside its image's header."""
    found = np.empty(0, np.int64)
    for index, mask in enumerate(files.masks):
        numbers = numbers_of(mask, files.root)
        with opened(files.images.paths[index], files.root) as image:
            if is_turned(image):
                raise InputError(
                    f"{files.images.paths[index]}: expected an image that lies as its mask does, got one that its EXIF "
                    "orientation turns; save it upright"
                )
            if (image.height, image.width) != numbers.shape:
                height, width = numbers.shape
                raise InputError(
                    f"{mask}: expected the size of its image, {image.width}x{image.height}, got {width}x{height}"
                )
        values = np.unique(numbers).astype(np.int64)
        kept = values if ignore is None else values[values != ignore]
        check_mask_values(kept, str(mask), 0, ignore)
        found = np.union1d(found, values)
    return found


def _paired(root: Path, folder: Path, framing: Framing, border: int) -> MaskedImages:
    """The images of a folder with the masks of the same names."""
    for name in FOLDERS:
        if not (folder / name).is_dir():
            raise InputError(f"{folder}: expected images and masks in it, got no {name}")
        check_inside(folder / name, root)
    skipped: Counter[str] = Counter()
    images = PathList(root)
    add_files(images, folder / "images", EXTENSIONS, skipped)
    by_name = _by_name(images, folder / "images")
    if not by_name:
        raise InputError(f"{folder / 'images'}: expected images ({', '.join(sorted(EXTENSIONS))}), got none")
    masks = PathList(root)
    add_files(masks, folder / "masks", EXTENSIONS, Counter())
    beside = _by_name(masks, folder / "masks")
    for what, own, others in (("a mask", by_name, beside), ("an image", beside, by_name)):
        alone = next((path for name, path in own.items() if name not in others), None)
        if alone is not None:
            raise InputError(f"{alone}: expected {what} of the same name, got none")
    files = ImageFiles(framing, images, np.zeros(len(images), np.int64), skipped)
    return MaskedImages(files, [beside[name] for name in by_name], root, border)


def _by_name(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Files by their path in a folder without the suffix, e.g. `street/1`."""
    found: dict[str, Path] = {}
    for path in paths:
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            raise InputError(f"{path}: expected one file of this name, got {found[name].name} too")
        found[name] = path
    return found
