"""The well-known image sets, in folders as torchvision's classes lay them out; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.data.framing import Framing
from edgeprune.data.idx import read_idx
from edgeprune.data.images import read_image
from edgeprune.data.limits import need
from edgeprune.data.splits import LazySplit, TensorSplit, build, cut, stratified
from edgeprune.errors import InputError
from edgeprune.records import DataSource

TRAIN_VAL = (0.9, 0.1)
TRAIN_VAL_TEST = (0.6, 0.2, 0.2)
DEFAULT_ROOT = "data"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IDX_SETS = {
    "mnist": ("MNIST", tuple(str(digit) for digit in range(10)), ()),
    # The last: where Debian's package dataset-fashion-mnist puts it.
    "fashion-mnist": ("FashionMNIST", FASHION_CLASSES, ("/usr/share/datasets/fashion-mnist",)),
}


def open_idx_set(name: str, root: str | None) -> DataSource:
    """MNIST or Fashion-MNIST: x float32 `(1, 28, 28)` in 0..1.

    `root` holds the four files `(train|t10k)-(images-idx3|labels-idx1)-ubyte`, gzipped or not, either directly or in
    torchvision's `MNIST/raw` or `FashionMNIST/raw`.
    """
    folder_name, classes, elsewhere = _IDX_SETS[name]
    roots = [root] if root is not None else [DEFAULT_ROOT, *elsewhere]
    folders = [Path(base) / inner for base in roots for inner in ("", f"{folder_name}/raw")]
    folder = next((folder for folder in folders if _idx_file(folder, "train-images-idx3-ubyte")), None)
    if folder is None:
        raise InputError(
            f"{name}: expected train-images-idx3-ubyte.gz in {' or '.join(map(str, folders))}, got nothing there; "
            f"give the folder as {name}:ROOT (torchvision.datasets.{folder_name}(ROOT, download=True) fills one)"
        )
    splits = [_idx_split(folder, prefix, len(classes)) for prefix in ("train", "t10k")]
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise InputError(f"{folder}: train images are {splits[0][0].shape[1:]}, test images {splits[1][0].shape[1:]}")
    return _from_bytes(name, splits, classes)


def _idx_file(folder: Path, stem: str) -> Path | None:
    candidates = (folder / f"{stem}.gz", folder / stem)
    return next((path for path in candidates if path.is_file()), None)


def _idx_split(folder: Path, prefix: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `(n, 1, h, w)` and labels int64 `(n,)`."""
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    images = read_idx(_idx_file(folder, stems[0]) or folder / f"{stems[0]}.gz", 3)
    labels = read_idx(_idx_file(folder, stems[1]) or folder / f"{stems[1]}.gz", 1)
    if len(images) != len(labels):
        raise InputError(f"{folder}: expected {len(images)} {prefix} labels, one per image, got {len(labels)}")
    if len(labels) and labels.max() >= n_classes:
        raise InputError(f"{folder}: expected {prefix} labels below {n_classes}, got {labels.max()}")
    return images[:, None], labels.astype(np.int64)


def _from_bytes(name: str, splits: Sequence[tuple[np.ndarray, np.ndarray]], classes: Sequence[str]) -> DataSource:
    """A set with an official test split: `splits` are train and test as bytes `(n, c, h, w)` with labels."""
    (x, y), (x_test, y_test) = ((torch.from_numpy(a), torch.from_numpy(b)) for a, b in splits)
    scale = 1.0 / 255.0
    return build(name, [*cut(x, y, TRAIN_VAL, scale), TensorSplit(x_test, y_test, scale)], classes)


def open_cifar(name: str, root: str | None) -> DataSource:
    """CIFAR-10 or CIFAR-100 through torchvision, which checks the files' digests first: x float32 `(3, 32, 32)`."""
    kind = name.upper()
    folder = root if root is not None else DEFAULT_ROOT
    reader = getattr(_torchvision_datasets(), kind)
    _check_regular(Path(folder) / reader.base_folder)
    try:
        train, test = (reader(folder, train=flag, download=False) for flag in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{name}: expected {reader.base_folder}, whole, in {folder}, got nothing there or a damaged copy; "
            f"torchvision.datasets.{kind}(ROOT, download=True) fills one"
        ) from error
    splits = [
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
        for part in (train, test)
    ]
    return _from_bytes(name, splits, train.classes)


def _check_regular(folder: Path) -> None:
    """Raise InputError where a folder holds what is no file: torchvision would wait for a pipe."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_file():
            raise InputError(f"{path}: expected a file of the data set, got something else")


def open_caltech(root: str | None, framing: Framing) -> DataSource:
    """Caltech-101 through torchvision, cut 60/20/20: x float32 `framing.shape` in 0..1, read as it is needed."""
    folder = Path(root if root is not None else DEFAULT_ROOT)
    # Looked for first: torchvision's class makes the folder it does not find.
    if not (folder / "caltech101" / "101_ObjectCategories").is_dir():
        raise InputError(f"caltech101: expected caltech101/101_ObjectCategories in {folder}, got nothing there")
    try:
        files = _torchvision_datasets().Caltech101(os.fspath(folder), download=False)
    except (RuntimeError, OSError) as error:
        raise InputError(f"caltech101: {folder} cannot be read: {error}") from error
    dataset = _Caltech(files, folder / "caltech101" / "101_ObjectCategories", framing)
    parts = stratified(np.asarray(files.y), TRAIN_VAL_TEST)
    splits = [LazySplit(dataset, part) for part in parts]
    return build("caltech101", splits, files.categories, notes=framing.notes, preparation=framing.stated)


class _Caltech(torch.utils.data.Dataset[Any]):
    """torchvision's index of Caltech-101, its images read with edgeprune's own bounds."""

    byte_scale = 1.0 / 255.0

    def __init__(self, files: Any, root: Path, framing: Framing) -> None:
        self.files, self.root, self.framing = files, root, framing
        self.labels = np.asarray(files.y)

    def __len__(self) -> int:
        return len(self.files.y)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = int(self.files.y[index])
        path = self.root / self.files.categories[label] / f"image_{self.files.index[index]:04d}.jpg"
        return read_image(path, self.root, self.framing), label


def _torchvision_datasets() -> Any:
    import edgeprune.compat  # noqa: F401 - registers what a CUDA build of torchvision lacks beside a CPU PyTorch

    return need("torchvision.datasets", "'edgeprune[vision]'")
