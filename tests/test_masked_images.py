"""`imagefolder` with masks: which files go together, what a mask is read as, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprune.data import batches, open_data
from edgeprune.data.framing import Framing
from edgeprune.data.masked import read_mask
from edgeprune.errors import InputError
from edgeprune.tasks.registry import open_task
from edgeprune.tasks.wanted import WantedTargets

SIZE = 8
RNG = np.random.default_rng(0)


def pair(folder: Path, name: str, mask: np.ndarray, image: np.ndarray | None = None) -> None:
    for kind in ("images", "masks"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    colours = RNG.integers(0, 256, (*mask.shape, 3), np.uint8) if image is None else image
    Image.fromarray(colours).save(folder / "images" / f"{name}.bmp")
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def masks(count: int, n_classes: int = 3) -> list[np.ndarray]:
    return [RNG.integers(0, n_classes, (SIZE, SIZE), np.uint8) for _ in range(count)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, mask in enumerate(masks(10)):
        pair(tmp_path, f"{'street/' if number % 2 else ''}{number}", mask)
    return tmp_path


def test_files_of_one_name_go_together(root: Path) -> None:
    data = open_data(f"imagefolder:{root}?size={SIZE}")
    assert data.targets.kind == "masks" and data.targets.shape == (SIZE, SIZE) and data.classes == ("0", "1", "2")
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 2, 2]  # type: ignore[arg-type]
    assert data.input_shape == (3, SIZE, SIZE) and data.byte_scale == 1 / 255
    wanted = {}
    for path in (root / "images").rglob("*.bmp"):
        mask = root / "masks" / path.relative_to(root / "images").with_suffix(".png")
        wanted[np.asarray(Image.open(path)).tobytes()] = np.asarray(Image.open(mask))
    for split in (data.train, data.val, data.test):
        for x, y in batches(split, 4):
            assert y.dtype == torch.int64
            for image, got in zip(x, y, strict=True):
                raw = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
                np.testing.assert_array_equal(got.numpy(), wanted[raw.tobytes()])


@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "val")])
def test_splits_in_folders(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for number, mask in enumerate(masks(10 if split == "train" else 3)):
            pair(tmp_path / split, str(number), mask)
    data = open_data(f"imagefolder:{tmp_path}?size=4")
    sizes = [len(split) for split in (data.train, data.val, data.test)]  # type: ignore[arg-type]
    assert sizes == ([10, 3, 3] if len(splits) == 3 else [9, 1, 3])


def test_a_mask_is_scaled_and_cropped_as_its_image(tmp_path: Path) -> None:
    """A wide mask loses its sides; ids are never mixed."""
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 7
    mask[:, :5] = mask[:, 15:] = 99
    Image.fromarray(mask).save(tmp_path / "a.png")
    found = read_mask(tmp_path / "a.png", tmp_path, Framing(4, 4))
    assert found.tolist() == [[0, 0, 7, 7]] * 4


@pytest.mark.parametrize(
    "saved",
    [
        lambda ids: Image.fromarray(ids.astype(np.uint16)),
        lambda ids: Image.fromarray(ids.astype(np.uint8)).convert("P"),
        lambda ids: Image.fromarray(ids > 0),
    ],
    ids=["16 bits", "palette", "1 bit"],
)
def test_kinds_of_masks(tmp_path: Path, saved: Callable[[np.ndarray], Image.Image]) -> None:
    ids = RNG.integers(0, 2, (SIZE, SIZE))
    saved(ids).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", tmp_path, Framing(SIZE, SIZE)).numpy(), ids)


def test_one_value_is_ignored(root: Path) -> None:
    mask = masks(1)[0]
    mask[0] = 255
    pair(root, "more", mask)
    data = open_data(f"imagefolder:{root}?size={SIZE}")
    assert len(data.classes) == 3 and "pixels of value 255 in the masks are ignored" in data.notes
    every = open_data(f"imagefolder:{root}?size={SIZE}", wanted=WantedTargets("masks", None))
    assert len(every.classes) == 256 and every.notes == ()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_white_is_class_1_of_black_and_white_masks(tmp_path: Path, splits: tuple[str, ...], fit: str) -> None:
    for split in splits:
        for number in range(10):
            white = np.full((SIZE, SIZE // 2), 255, np.uint8)
            white[: SIZE // 2] = 0
            white = white[::-1] if number % 2 else white
            pair(tmp_path / split, str(number), white * (split != "test"), np.repeat(white[..., None] // 255, 3, 2))
    data = open_data(f"imagefolder:{tmp_path}?size={SIZE}&fit={fit}")
    assert (
        data.classes == ("0", "255")
        and "255 in the masks is read as class 1, as they hold 0 and 255 alone" in data.notes
    )
    for split in (data.train, data.val, data.test):
        for x, y in batches(split, 4):
            wanted = (x[:, 0] > 0).long()
            inside = slice(SIZE // 4, -SIZE // 4) if fit == "pad" else slice(None)
            if split is data.test and "test" in splits:
                wanted = wanted * 0
            assert torch.equal(y[:, :, inside], wanted[:, :, inside])
            assert (y == 255).any() == (fit == "pad")  # the border alone
    with pytest.raises(InputError, match="at least 2 classes, got 1 beside 255, which is ignored"):
        open_data(f"imagefolder:{tmp_path}?size={SIZE}", wanted=WantedTargets("masks", ignore_asked=True))


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "0.bmp").unlink()
    Image.new("RGB", (SIZE, SIZE)).save(root / "images" / "0.jpg", exif=exif)


def without_classes(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        Image.new("L", (SIZE, SIZE)).save(path)


def below_train(root: Path) -> None:
    (root / "train").mkdir()
    for name in ("images", "masks"):
        (root / name).rename(root / "train" / name)


SPOILT: dict[str, Callable[[Path], object]] = {
    "no mask": lambda root: (root / "masks" / "0.png").unlink(),
    "no image": lambda root: (root / "images" / "0.bmp").unlink(),
    "twice": lambda root: Image.new("RGB", (SIZE, SIZE)).save(root / "images" / "0.png"),
    "size": lambda root: Image.new("L", (SIZE, SIZE + 1)).save(root / "masks" / "0.png"),
    "colours": lambda root: Image.new("RGB", (SIZE, SIZE)).save(root / "masks" / "0.png"),
    "damaged": lambda root: (root / "masks" / "0.png").write_bytes(b"none"),
    "one class": without_classes,
    "turned": turned,
    "train alone": below_train,
}


@pytest.mark.parametrize(
    ("how", "fragment"),
    [
        ("no mask", "images/0.bmp: expected a mask of the same name, got none"),
        ("no image", "masks/0.png: expected an image of the same name, got none"),
        ("twice", "images/0.png: expected one file of this name, got 0.bmp too"),
        ("size", "masks/0.png: expected the size of its image, 8x8, got 8x9"),
        (
            "colours",
            "masks/0.png: expected a mask with the number of a class for each pixel (grey or",
        ),
        ("damaged", "masks/0.png: expected an image, got"),
        ("one class", "expected masks of at least 2 classes, got 1"),
        ("turned", "images/0.jpg: expected an image that lies as its mask does"),
        ("train alone", "expected val or test beside train, got train alone"),
    ],
)
def test_what_does_not_go_together_is_named(root: Path, how: str, fragment: str) -> None:
    SPOILT[how](root)
    with pytest.raises(InputError, match=re.escape(fragment)):
        open_data(f"imagefolder:{root}?size={SIZE}")


def test_segmentation_is_what_they_call_for(root: Path) -> None:
    data = open_data(f"imagefolder:{root}?size={SIZE}")
    task = open_task(None, data)
    [(x, y)] = batches(data.val, 4)
    scores = torch.nn.Conv2d(3, 3, 1)(x)
    task.check(scores, data)
    assert task.name == "segmentation" and 0 < task.value(task.outcomes(scores, task.targets(y))) < 1
    assert task.loss(scores, task.targets(y)).isfinite()
