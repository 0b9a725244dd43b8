"""Size, fit and channels of images: one pipeline for training, validation and what features.json states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from edgeprune import compat  # noqa: F401  (torchvision can be imported after it)
from edgeprune.data import open_data
from edgeprune.data.framing import Framing
from edgeprune.data.images import read_image
from edgeprune.data.masked import read_mask
from edgeprune.data.specs import told_apart
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.graph.capture import capture
from edgeprune.records import ModelInfo
from edgeprune.tasks.wanted import WantedTargets


def saved(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def read(pixels: np.ndarray, folder: Path, framing: Framing) -> torch.Tensor:
    return read_image(saved(pixels, folder / "a.png"), folder, framing)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_a_frame_that_the_image_has_takes_every_pixel(tmp_path: Path) -> None:
    pixels = noise(6, 10, 3)
    for fit in ("crop", "pad", "stretch"):
        found = read(pixels, tmp_path, Framing(6, 10, fit))
        np.testing.assert_array_equal(found.permute(1, 2, 0).mul(255).round().numpy(), pixels)


def test_crop_covers_a_rectangle_as_pillow_fits_it(tmp_path: Path) -> None:
    pixels = noise(20, 9, 3)
    found = read(pixels, tmp_path, Framing(6, 10))
    want = ImageOps.fit(Image.fromarray(pixels), (10, 6), method=Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found.permute(1, 2, 0).mul(255).round().numpy(), np.asarray(want))


def test_pad_centres_the_image_between_black_borders(tmp_path: Path) -> None:
    pixels = noise(4, 4, 3)
    found = read(pixels, tmp_path, Framing(4, 10, "pad")).permute(1, 2, 0)
    np.testing.assert_array_equal(found[:, 3:7].mul(255).round().numpy(), pixels)
    assert found[:, :3].count_nonzero() == 0 and found[:, 7:].count_nonzero() == 0
    line = read(np.full((1, 900), 255, np.uint8), tmp_path, Framing(8, 8, "pad"))
    assert line[0].count_nonzero() == 8  # a line of one pixel's height stays one


def test_stretch_scales_each_side_by_its_own_factor(tmp_path: Path) -> None:
    halves = np.repeat(np.array([[0, 200]], np.uint8), 3, axis=1).repeat(12, axis=0)  # (12, 6), the right half bright
    found = read(halves, tmp_path, Framing(3, 2, "stretch"))
    assert found.shape == (3, 3, 2)
    want = np.asarray(Image.fromarray(halves).convert("RGB").resize((2, 3), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found.permute(1, 2, 0).mul(255).round().numpy(), want)


def test_one_channel_is_the_luminance_and_of_grey_files_their_own_values(tmp_path: Path) -> None:
    colours, grey = noise(5, 7, 3), noise(5, 7)
    found = read(colours, tmp_path, Framing(5, 7, channels=1))
    assert found.shape == (1, 5, 7)
    luminance = colours @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[0].mul(255).numpy(), luminance, atol=0.51)
    np.testing.assert_array_equal(read(grey, tmp_path, Framing(5, 7, channels=1))[0].mul(255).round().numpy(), grey)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_allclose(read(deep, tmp_path, Framing(5, 7, "pad", 1))[0].numpy(), grey / 255, atol=1e-6)


def test_masks_are_framed_as_their_images_and_their_border_is_ignored(tmp_path: Path) -> None:
    ids = (noise(4, 4) % 3).astype(np.uint8)
    found = read_mask(saved(ids, tmp_path / "m.png"), tmp_path, Framing(4, 8, "pad"), 255).numpy()
    np.testing.assert_array_equal(found[:, 2:6], ids)
    assert (found[:, :2] == 255).all() and (found[:, 6:] == 255).all()
    for index in range(10):
        saved(noise(4, 4, 3), tmp_path / "d" / "images" / f"{index}.png")
        saved(ids, tmp_path / "d" / "masks" / f"{index}.png")
    data = open_data(f"imagefolder:{tmp_path / 'd'}?height=4&width=8&fit=pad")
    assert data.input_shape == (3, 4, 8) and data.targets.shape == (4, 8)
    assert (data.train[0][1][:, :2] == 255).all() and len(data.classes) == 3
    assert any("the border of fit=pad is 255 in the masks" in note for note in data.notes)
    with pytest.raises(InputError, match="the border of fit=pad, got ignore=none"):
        open_data(f"imagefolder:{tmp_path / 'd'}?size=4&fit=pad", wanted=WantedTargets("masks", None))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("height=4", "expected size, or both height and width, got height"),
        ("size=4&height=4&width=4", "got size and height and width"),
        ("height=4&width=5000", "expected a width from 1 to 4096, got '5000'"),
        ("fit=squeeze", "expected fit=crop or pad or stretch, got 'squeeze'"),
        ("channels=4", "expected channels=1 (grey) or 3 (RGB), got '4'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_data(f"imagefolder:{tmp_path}?{options}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_prepared_otherwise_than_in_training_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(8):
            saved(noise(6, 6), tmp_path / name / f"{index}.png")
    spec = f"imagefolder:{tmp_path}?size=6"
    data = open_data(spec)
    assert told_apart(data, f"{spec}&fit=crop").notes == told_apart(data, "digits").notes == data.notes == ()
    assert told_apart(data, "imagefolder:elsewhere?fit=none").notes == ()
    [note] = told_apart(data, "imagefolder:elsewhere?size=6&fit=pad&channels=1").notes
    assert note.endswith("that the model was trained on: fit crop (there pad), channels 3 (there 1)")


def test_training_validation_and_features_json_have_one_pipeline(tmp_path: Path) -> None:
    for name, level in (("dark", 60), ("light", 190)):
        for index in range(30):
            saved((noise(12, 9) % 50 + level).astype(np.uint8), tmp_path / "photos" / name / f"{index}.png")
    data = open_data(f"imagefolder:{tmp_path / 'photos'}?height=6&width=10&fit=pad&channels=1")
    assert data.input_shape == (1, 6, 10) and data.val[0][0].shape == (1, 6, 10)
    assert any("scaled to lie within 6 x 10" in note and "grey" in note for note in data.notes)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 10, 2)).eval()
    program = capture(net, torch.zeros(2, 1, 6, 10))
    info = ModelInfo((1, 6, 10), classes=data.classes, normalization=data.normalization)
    write_contracts(program, info, tmp_path, simplify=False, byte_scale=data.byte_scale, preparation=data.preparation)
    stated = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))
    assert stated["input_shape"] == [1, 6, 10] and stated["preparation"] == dict(data.preparation)
    want = {"kind": "image", "height": 6, "width": 10, "fit": "pad", "channels": 1, "values": "0 to 1"}
    assert want.items() <= stated["preparation"].items()


@pytest.mark.parametrize(("crop_pct", "interpolation"), [(0.875, "bilinear"), (0.95, "bicubic")])
def test_a_share_of_the_sides_is_what_torchvisions_own_transform_takes(
    tmp_path: Path, crop_pct: float, interpolation: str
) -> None:
    from torchvision.transforms import v2

    ramp = np.linspace(0, 255, 320)[None, :, None] * np.linspace(0.2, 1, 256)[:, None, None]
    pixels = np.repeat(ramp, 3, 2).astype(np.uint8)
    framing = Framing.asked({"size": "56", "crop_pct": str(crop_pct), "interpolation": interpolation}, "data")
    found = read(pixels, tmp_path, framing)
    mode = v2.InterpolationMode(interpolation)
    resized = v2.Resize(round(56 / crop_pct), interpolation=mode, antialias=True)(Image.fromarray(pixels))
    want = torch.from_numpy(np.array(v2.CenterCrop(56)(resized))).permute(2, 0, 1) / 255
    assert (found - want).abs().max() < 0.03  # one scaling in the place of a scaling and a crop at whole pixels
    plain = read(pixels, tmp_path, Framing(56, 56))
    assert (found - want).abs().mean() < 0.5 * (plain - want).abs().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_pct": "0"}, "crop_pct above 0 and at most 1, got '0'"),
        ({"crop_pct": "nan"}, "crop_pct above 0 and at most 1, got 'nan'"),
        ({"crop_pct": "0.9", "fit": "pad"}, "crop_pct with fit=crop, got fit=pad"),
        ({"interpolation": "lanczos"}, "interpolation=bilinear or bicubic, got 'lanczos'"),
    ],
)
def test_shares_and_interpolations_that_there_are_not_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Framing.asked(options, "data")


def test_published_weights_say_how_their_images_were_scaled() -> None:
    from edgeprune.formats.pretrained import published_scaling

    assert published_scaling("torchvision:resnet18") == {"crop_pct": "0.875", "interpolation": "bilinear"}
    assert published_scaling("timm:resnet18") == {"crop_pct": "0.95", "interpolation": "bicubic"}
    assert published_scaling("torchvision:fasterrcnn_resnet50_fpn") == published_scaling("nets.py:net") == {}
