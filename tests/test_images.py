"""Image files of every kind: what of each reaches the network, and what the user is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeprune.data import open_data
from edgeprune.data.framing import Framing
from edgeprune.data.images import read_image
from edgeprune.errors import InputError

SIZE = 8
GREY = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 1040  # to 65,520
COLOURS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def read(path: Path) -> np.ndarray:
    """`(height, width, 3)` in 0..1."""
    return read_image(path, path.parent, Framing(SIZE, SIZE)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_divided_by_65535(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(read(tmp_path / f"a.{suffix}"), np.repeat(GREY[..., None], 3, 2) / 65535, atol=1e-6)


def test_big_endian_tiff_is_read_as_such(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (SIZE, SIZE), GREY.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read(tmp_path / "a.tif")[..., 0], GREY / 65535, atol=1e-6)


def test_a_pgm_of_10_bits_is_scaled_by_its_own_maximum(tmp_path: Path) -> None:
    values = np.linspace(0, 1023, SIZE * SIZE).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n8 8\n1023\n" + values.tobytes())
    np.testing.assert_allclose(read(tmp_path / "a.pgm")[..., 0].ravel(), values / 1023, atol=1e-4)


@pytest.mark.parametrize("deep", [True, False])
def test_other_sizes_are_scaled_alike(tmp_path: Path, deep: bool) -> None:
    """A 16-bit image comes out as its 8-bit copy does, but for the rounding."""
    ramp = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    Image.fromarray(ramp.astype(np.uint16) * 257 if deep else ramp).save(tmp_path / "a.png")
    want = read_image_of(ramp, tmp_path)
    np.testing.assert_allclose(read(tmp_path / "a.png"), want, atol=1 / 255)


def read_image_of(grey: np.ndarray, folder: Path) -> np.ndarray:
    Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(folder / "want.png")
    return read(folder / "want.png")


def test_transparency_leaves_the_colours_as_they_are(tmp_path: Path) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 1), np.uint8)
    Image.fromarray(np.concatenate([COLOURS, alpha], 2), "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), COLOURS / np.float32(255))
    Image.fromarray(np.concatenate([COLOURS[..., :1], alpha], 2), "LA").save(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png")[..., 2], COLOURS[..., 0] / np.float32(255))


def test_a_palette_gives_its_colours_transparent_or_not(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(64)
    want = np.asarray(image.convert("RGB")) / np.float32(255)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png", transparency=bytes(64))
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(read(tmp_path / name), want)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = COLOURS[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png")[..., 1], bits.astype(np.float32))


def test_inks_become_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0)).save(tmp_path / "a.tif")  # cyan
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0, 0], [0.0, 1.0, 1.0])
    Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(read(tmp_path / "a.jpg")[0, 0], [0.0, 1.0, 1.0], atol=0.02)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_images_are_turned_as_their_orientation_says(tmp_path: Path, suffix: str) -> None:
    top = np.zeros((SIZE, SIZE, 3), np.uint8)
    top[: SIZE // 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is the right of the scene's left: turn by 90 degrees clockwise
    Image.fromarray(top).save(tmp_path / f"a.{suffix}", exif=exif)
    got = read(tmp_path / f"a.{suffix}")
    assert got[:, SIZE // 2 + 1 :].min() > 0.9 and got[:, : SIZE // 2 - 1].max() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        want = np.asarray(ImageOps.exif_transpose(image)) / np.float32(255)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), want)


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\1"])
def test_an_orientation_that_cannot_be_read_says_nothing(tmp_path: Path, exif: bytes) -> None:
    for suffix in ("png", "webp"):
        Image.fromarray(COLOURS).save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
        np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), COLOURS / np.float32(255))


def test_the_first_of_several_frames_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for suffix in ("webp", "png", "tif"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_allclose(read(tmp_path / f"a.{suffix}")[0, 0], [1.0, 0.0, 0.0], atol=0.02)


@pytest.mark.parametrize(("kind", "got"), [("int32", "32-bit integers"), ("float32", "32-bit floats")])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, kind: str, got: str) -> None:
    Image.fromarray(np.ones((SIZE, SIZE), kind)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"a.tif: expected pixels of 8 or 16 bits, got {got}, whose range nothing"):
        read(tmp_path / "a.tif")


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), COLOURS / np.float32(255))
    (tmp_path / "b.jpg").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="b.jpg: expected an image"):
        read(tmp_path / "b.jpg")


# folders --------------------------------------------------------------------------------------------------------------


def folder(root: Path, n: int = 10) -> Path:
    """Two classes of small images."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(n):
            Image.fromarray(COLOURS).save(root / name / f"{number}.png")
    return root


def test_plain_folders_are_not_commented(tmp_path: Path) -> None:
    data = open_data(f"imagefolder:{folder(tmp_path)}?size=8")
    assert data.notes == () and data.byte_scale == 1 / 255


def test_what_is_done_to_odd_files_is_told(tmp_path: Path) -> None:
    root = folder(tmp_path)
    Image.fromarray(GREY).save(root / "cat" / "deep.png")
    Image.fromarray(COLOURS).convert("RGBA").save(root / "dog" / "glass.png")
    (root / "dog" / "moving.gif").write_bytes(b"GIF89a")
    for name in (".DS_Store", "._0.png", "Thumbs.db"):
        (root / "cat" / name).write_bytes(b"of the system")
    data = open_data(f"imagefolder:{root}?size=8")
    assert data.notes == (
        "16-bit images are divided by 65535 (e.g. cat/deep.png)",
        "transparency is left out: the colours below it are taken (e.g. dog/glass.png)",
        "files are left out that are no images by name (1 .gif)",
    )
    assert data.byte_scale is None and len(data.train) + len(data.val) + len(data.test) == 22


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    (folder(tmp_path) / "cow").mkdir()
    with pytest.raises(InputError, match="expected images in every class folder, got none in cow; delete what is no"):
        open_data(f"imagefolder:{tmp_path}")


def test_a_class_may_be_missing_in_test_but_not_in_train(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "test")
    for path in (tmp_path / "test" / "dog").iterdir():
        path.unlink()
    (tmp_path / "test" / "dog").rmdir()
    data = open_data(f"imagefolder:{tmp_path}?size=8")
    assert data.classes == ("cat", "dog") and {y for _, y in data.test} == {0}
    for path in (tmp_path / "train" / "cat").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="train: expected images in every class folder, got none in cat"):
        open_data(f"imagefolder:{tmp_path}")
