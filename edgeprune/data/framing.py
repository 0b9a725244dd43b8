"""What an image's pixels are brought to before a network gets them: size, how they are fitted into it, channels.

    fit=crop      scaled until the frame is covered, then cropped to the centre
    fit=pad       scaled until it lies within the frame, centred, the border black (0); of masks it is ignored
    fit=stretch   scaled to the frame, each side by its own factor
    crop_pct=1    with fit=crop: the share of the covering part's sides that is kept, as timm's evaluation has it;
                  torchvision's resize 256, crop 224 is crop_pct=0.875
    interpolation=bilinear | bicubic, both with antialiasing
    channels=3    red, green and blue
    channels=1    grey, 0.299 red + 0.587 green + 0.114 blue

Whoever reads images goes through here: training, validation, and what features.json states are one pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeprune.data.limits import need
from edgeprune.errors import InputError

DEFAULT_SIZE = 64
OPTIONS = ("size", "height", "width", "fit", "crop_pct", "interpolation", "channels")
FITS = ("crop", "pad", "stretch")
INTERPOLATIONS = ("bilinear", "bicubic")
_CHANNELS = {"1": 1, "3": 3}
_LARGEST = 4096  # pixels along a side
_COLOURS = {1: "grey: 0.299 R + 0.587 G + 0.114 B", 3: "RGB"}
_HOW = {
    "crop": "scaled to cover height x width, then cropped to the centre",
    "pad": "scaled to lie within height x width, centred, with a border of 0",
    "stretch": "scaled to height x width, each side by its own factor",
}


@dataclass(frozen=True, slots=True)
class Framing:
    """The frame of an image: `height` and `width` in pixels, how it is fitted into it, and its channels.

    `crop_pct` in (0, 1] is the share of the sides that a centre crop keeps.
    """

    height: int = DEFAULT_SIZE
    width: int = DEFAULT_SIZE
    fit: str = "crop"
    channels: int = 3
    crop_pct: float = 1.0
    interpolation: str = "bilinear"

    @classmethod
    def asked(cls, options: Mapping[str, str], where: str) -> Framing:
        """From options such as `{"height": "48", "width": "64", "fit": "pad"}`.

        Args:
            where: how a message begins, e.g. "data 'imagefolder:x?size=0'".

        Raises:
            InputError: a size beside height or width, or one of these without the other; numbers or names out of range.
        """
        height, width = _sides(options, where)
        fit, channels = options.get("fit", "crop"), options.get("channels", "3")
        if fit not in FITS:
            raise InputError(f"{where}: expected fit={' or '.join(FITS)}, got {fit[:40]!r}")
        if channels not in _CHANNELS:
            raise InputError(f"{where}: expected channels=1 (grey) or 3 (RGB), got {channels[:40]!r}")
        interpolation = options.get("interpolation", "bilinear")
        if interpolation not in INTERPOLATIONS:
            wanted = " or ".join(INTERPOLATIONS)
            raise InputError(f"{where}: expected interpolation={wanted}, got {interpolation[:40]!r}")
        return cls(height, width, fit, _CHANNELS[channels], _crop_pct(options, fit, where), interpolation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what a network gets, `(channels, height, width)`."""
        return self.channels, self.height, self.width

    def framed(self, image: Any, method: Any = None, border: int = 0) -> Any:
        """One of Pillow's images in the frame.

        Args:
            method: one of `PIL.Image.Resampling`, in the place of the frame's own interpolation.
            border: what stands beside an image that does not fill the frame.
        """
        size = self.width, self.height
        if method is None:
            method = need("PIL.Image", "'edgeprune[vision]'").Resampling[self.interpolation.upper()]
        if self.fit == "crop":
            bleed = (1 - self.crop_pct) / 2
            return need("PIL.ImageOps", "'edgeprune[vision]'").fit(image, size, method=method, bleed=bleed)
        if self.fit == "stretch":
            return image.resize(size, method)
        factor = min(self.width / image.width, self.height / image.height)
        # At least one pixel: a line of a thousand pixels stays one.
        inner = tuple(max(1, min(most, round(side * factor))) for side, most in zip(image.size, size, strict=True))
        frame = need("PIL.Image", "'edgeprune[vision]'").new(image.mode, size, border)
        frame.paste(
            image.resize(inner, method), tuple((most - side) // 2 for side, most in zip(inner, size, strict=True))
        )
        return frame

    @property
    def stated(self) -> dict[str, Any]:
        """What is done to an image, as features.json says it."""
        return {
            "kind": "image",
            "height": self.height,
            "width": self.width,
            "fit": self.fit,
            "how": self._how,
            "crop_pct": self.crop_pct,
            "interpolation": f"{self.interpolation} with antialiasing (Pillow)",
            "channels": self.channels,
            "colours": _COLOURS[self.channels],
            "values": "0 to 1",
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told of it; nothing of colours that are cropped to a square, as they always were."""
        if self == Framing(self.height, self.height):
            return ()
        colour = ", in grey" if self.channels == 1 else ""
        how = self._how.replace("height x width", f"{self.height} x {self.width}")
        return (f"images are {how}{', bicubic' if self.interpolation == 'bicubic' else ''}{colour}",)

    @property
    def _how(self) -> str:
        if self.crop_pct == 1:
            return _HOW[self.fit]
        return f"{_HOW[self.fit]}, {self.crop_pct:g} of its sides"


def _crop_pct(options: Mapping[str, str], fit: str, where: str) -> float:
    """The share of the sides that a centre crop keeps."""
    text = options.get("crop_pct", "1")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise InputError(f"{where}: expected a crop_pct above 0 and at most 1, got {text[:40]!r}")
    if share < 1 and fit != "crop":
        raise InputError(f"{where}: expected crop_pct with fit=crop, got fit={fit}, which crops nothing")
    return share


def _sides(options: Mapping[str, str], where: str) -> tuple[int, int]:
    """Height and width, in pixels."""
    given = [name for name in ("size", "height", "width") if name in options]
    if given == ["height", "width"]:
        return _side(options, "height", where), _side(options, "width", where)
    if given not in ([], ["size"]):
        raise InputError(f"{where}: expected size, or both height and width, got {' and '.join(given)}")
    size = _side(options, "size", where)
    return size, size


def _side(options: Mapping[str, str], name: str, where: str) -> int:
    text = options.get(name, str(DEFAULT_SIZE))
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST:
        raise InputError(f"{where}: expected a {name} from 1 to {_LARGEST}, got {text!r}")
    return int(text)
