"""From an image file of any kind to the pixels that a network gets: what is done to each kind is decided here.

    8 bits, 1 bit, palettes   their colours, as 0..1
    16-bit grey               divided by 65535 (16 bits a colour: Pillow reads the upper 8)
    grey                      the same value in all three channels, or the one
    transparency              left out: the colours below it are taken, as torchvision's and timm's loaders do
    CMYK, YCbCr, HSV          converted without a colour profile
    EXIF orientation          applied: the image is turned upright
    several frames            the first
    32-bit ints and floats    refused, for nothing says what their range is; so is LAB

A file's content says what it is, not its suffix.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.framing import Framing
from edgeprune.data.limits import need
from edgeprune.errors import InputError

_ORIENTATION = 0x0112  # the EXIF tag
# What makes an image of each orientation upright, by Pillow's names.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_DEEP = 65535.0
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_SCALED_FORMATS = ("PNG", "PPM")  # their mode I is of 16 bits
_ALPHA = {"LA": "LA", "La": "LA", "PA": "PA", "RGBA": "RGBA", "RGBa": "RGBA"}
_INKS = ("CMYK", "YCbCr", "HSV")
_PLAIN = ("1", "L", "P", "RGB", "RGBX", *_INKS)
_UNKNOWN = {"I": "32-bit integers", "F": "32-bit floats", "LAB": "LAB colours"}


def is_deep(image: Any) -> bool:
    """Whether an opened image has 16 bits a pixel."""
    return image.mode in _DEEP_MODES or (image.mode == "I" and image.format in _SCALED_FORMATS)


def to_pixels(image: Any, framing: Framing, path: Path | str) -> Tensor:
    """An opened image as float32 `framing.shape` in 0..1.

    Raises:
        InputError: pixels whose range is not known.
    """
    pil = need("PIL.Image", "'edgeprune[vision]'")
    image.load()  # a damaged image is refused here; Pillow turns a TIFF while it loads it
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(pil.Transpose[turn])
    if is_deep(image):
        grey = np.asarray(framing.framed(image.convert("F")), dtype=np.float32)
        return torch.from_numpy((grey / _DEEP).clip(0.0, 1.0)).expand(framing.shape).clone()
    if image.mode in _ALPHA:
        image = image.convert(_ALPHA[image.mode])
    elif image.mode not in _PLAIN:
        got = _UNKNOWN.get(image.mode, f"mode {image.mode}")
        raise InputError(
            f"{path}: expected pixels of 8 or 16 bits, got {got}, whose range nothing says; save such images with 16 "
            "bits, or as arrays (npz:FILE)"
        )
    image.info.pop("transparency", None)  # Pillow warns that it leaves it out
    colours = image.convert("RGB")
    framed = framing.framed(colours if framing.channels == 3 else colours.convert("L"))
    pixels = torch.from_numpy(np.array(framed)).reshape(framing.height, framing.width, framing.channels)
    return pixels.permute(2, 0, 1).to(torch.float32) / 255.0


def peculiarities(image: Any) -> Iterator[str]:
    """What is done to an opened image that its owner may not expect, one sentence each."""
    if is_deep(image):
        yield "16-bit images are divided by 65535"
    if image.mode in _ALPHA or "transparency" in image.info:
        yield "transparency is left out: the colours below it are taken"
    if image.mode in _INKS:
        yield "CMYK, YCbCr and HSV are converted without a colour profile"
    if is_turned(image):
        yield "images are turned upright as their EXIF orientation says"
    if getattr(image, "is_animated", False):
        yield "of several frames the first is taken"


def is_turned(image: Any) -> bool:
    """Whether an opened image is turned upright as its EXIF orientation says."""
    return _orientation(image) in _TURNS


def _orientation(image: Any) -> int:
    """The EXIF orientation, 1 to 8; 1, which is upright, where a file has none or one that cannot be read."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about each tag that cannot be read
            return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, ValueError, TypeError, SyntaxError, struct.error):
        return 1
