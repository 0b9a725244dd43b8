"""The border of an image that a network never needs: what to crop where single pixels cannot be left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgeprune.data import normalize, read
from edgeprune.data.inputs import fed, one_tensor
from edgeprune.records import DataSource, Normalization
from edgeprune.training import one_float_type
from edgeprune.training.placement import in_eval

_MAX_SAMPLES = 2000
_MIN_SAMPLES = 100  # of fewer images nothing is concluded
_MAX_NUMBERS = 2**26  # of all samples together, 256 MB as float32
_BATCH = 128


@dataclass(frozen=True, slots=True)
class Crop:
    """How many rows and columns at each side of `height` by `width` images change no prediction on `n_samples`."""

    height: int
    width: int
    n_samples: int
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    @property
    def inside(self) -> Tensor:
        """Bool `(height, width)`: what is left."""
        left = torch.zeros(self.height, self.width, dtype=torch.bool)
        left[self.top : self.height - self.bottom, self.left : self.width - self.right] = True
        return left

    def __str__(self) -> str:
        rows, columns = self.height - self.top - self.bottom, self.width - self.left - self.right
        sides = ", ".join(f"{getattr(self, side)} at the {side}" for side in _SIDES if getattr(self, side))
        return (
            f"crop the images to {rows} x {columns} and train on them: of their {self.height} rows and {self.width} "
            f"columns these never matter: {sides} (without them no prediction on {self.n_samples:,} validation images "
            "changes)"
        )


_SIDES = ("top", "bottom", "left", "right")


def find_crop(module: nn.Module, data: DataSource, normalization: Normalization) -> Crop | None:
    """The border without which no prediction changes on the validation split, or None where there is none.

    Border rows and columns are replaced by the mean image. Sides are tried one after the other, each by bisection.

    Args:
        module: takes normalised images `(batch, channels, height, width)`, gives logits `(batch, n_classes)`.
        normalization: of the inputs.
    """
    images = sample_images(data, normalization).to(one_float_type(module))
    mean, (height, width) = images.mean(0), images.shape[-2:]
    with torch.no_grad(), in_eval(module):
        best = Crop(height, width, len(images))
        expected = predictions(module, images, mean, best.inside)
        if not are_telling(expected):
            return None
        for side in _SIDES:
            least, most = 0, (height if side in ("top", "bottom") else width) // 2
            while least < most:
                middle = (least + most + 1) // 2
                tried = replace(best, **{side: middle})
                if torch.equal(predictions(module, images, mean, tried.inside), expected):
                    least = middle
                else:
                    most = middle - 1
            best = replace(best, **{side: least})
    return best if any(getattr(best, side) for side in _SIDES) else None


def sample_images(data: DataSource, normalization: Normalization) -> Tensor:
    """Normalised validation images, evenly spaced over the split, as many as fit."""
    n_all = len(data.val)  # type: ignore[arg-type]
    size = torch.Size(data.input_shape).numel()
    count = max(1, min(n_all, _MAX_SAMPLES, _MAX_NUMBERS // size))
    index = torch.linspace(0, n_all - 1, count).long()
    return torch.cat([normalize(one_tensor(x, "crop"), normalization) for x, _ in read(data.val, index.split(_BATCH))])


def are_telling(classes: Tensor) -> bool:
    """Whether predictions `(n_images,)` that stay say that something never matters: many, and not one class alone."""
    return len(classes) >= _MIN_SAMPLES and bool((classes != classes[0]).any())


def predictions(module: nn.Module, images: Tensor, mean: Tensor, inside: Tensor) -> Tensor:
    """Classes `(n_images,)` where what is not inside, bool `(height, width)`, is the mean image's."""
    parts = (torch.where(inside, x, mean) for x in images.split(_BATCH))
    return torch.cat([fed(module, x).argmax(dim=1) for x in parts])
