"""What an image's pixels are brought to before a network gets them: size, how they are fitted into it, channels.

    fit=crop      scaled until the frame is covered, then cropped to the centre
    fit=pad       scaled until it lies within the frame, centred, the border black (0); of masks it is ignored
    fit=stretch   scaled to the frame, each side by its own factor
    channels=3    red, green and blue
    channels=1    grey, 0.299 red + 0.587 green + 0.114 blue

Whoever reads images goes through here: training, validation, and what features.json states are one pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeprune.data.limits import need
from edgeprune.errors import InputError

DEFAULT_SIZE = 64
OPTIONS = ("size", "height", "width", "fit", "channels")
FITS = ("crop", "pad", "stretch")
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
    """The frame of an image: `height` and `width` in pixels, how it is fitted into it, and its channels."""

    height: int = DEFAULT_SIZE
    width: int = DEFAULT_SIZE
    fit: str = "crop"
    channels: int = 3

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
        return cls(height, width, fit, _CHANNELS[channels])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what a network gets, `(channels, height, width)`."""
        return self.channels, self.height, self.width

    def framed(self, image: Any, method: Any, border: int = 0) -> Any:
        """One of Pillow's images in the frame.

        Args:
            method: one of `PIL.Image.Resampling`.
            border: what stands beside an image that does not fill the frame.
        """
        size = self.width, self.height
        if self.fit == "crop":
            return need("PIL.ImageOps", "'edgeprune[vision]'").fit(image, size, method=method)
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
            "how": _HOW[self.fit],
            "interpolation": "bilinear with antialiasing (Pillow)",
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
        return (f"images are {_HOW[self.fit].replace('height x width', f'{self.height} x {self.width}')}{colour}",)


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
