"""Training images that are changed each time they are read: shifted and mirrored, or by one of torchvision's policies.

What is drawn for a sample depends on the seed, the epoch and the sample alone: neither on the batch that it is in nor
on the process that reads it, so that a resumed training, one in several processes and one with workers see the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.data.inputs import Inputs, one_tensor

SMALLEST = 8  # pixels a side
_SHARE = 8  # of a side that is the furthest shift
_STRIDE = 1_000_003  # a prime: seeds of samples lie apart, of an epoch's samples all differ
_SEEDS = 2**32  # as many are told apart
_POLICIES = {"trivial": "TrivialAugmentWide", "rand": "RandAugment"}


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How the images of an epoch are changed.

    `kind` is as in `Recipe.augment`, `seed` the epoch's. `byte_scale` times a byte is a raw value. `outside` is what
    masks, which move with their images, hold where there is no image; None where the targets are none.
    """

    kind: str
    seed: int
    byte_scale: float | None = None
    outside: int | None = None

    def __call__(self, index: Tensor, raw: Inputs, targets: Any) -> tuple[Inputs, Any]:
        """The raw images `(n, channels, height, width)` of the samples at `index` `(n,)`, and targets, changed."""
        x = one_tensor(raw, "augment")
        seeds = [(self.seed * _STRIDE + number) % _SEEDS for number in index.tolist()]
        pixels = _Places.drawn(seeds, x.shape[-2], x.shape[-1])
        x = pixels.of(x, 0.0)
        if self.outside is not None:
            targets = pixels.of(targets.unsqueeze(1), self.outside).squeeze(1)
        return (x if self.kind == "crop-flip" else self._changed(x, seeds)), targets

    def _changed(self, x: Tensor, seeds: list[int]) -> Tensor:
        """By the policy, image by image, as the bytes that the raw values stand for."""
        assert self.byte_scale is not None
        policy = _policy(self.kind)
        images = (x / self.byte_scale).round_().to(torch.uint8)
        with torch.random.fork_rng(devices=[]):
            changed = [_seeded(policy, image, seed) for image, seed in zip(images, seeds, strict=True)]
        return torch.stack(changed).to(torch.float32) * self.byte_scale


def _seeded(policy: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would set a GPU's, too
    return policy(image)


def _policy(kind: str) -> Any:
    import edgeprune.compat  # noqa: F401 - torchvision can be imported after it

    return getattr(importlib.import_module("torchvision.transforms.v2"), _POLICIES[kind])()


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where each pixel of shifted and mirrored images comes from: `rows` `(n, height)`, `columns` `(n, width)`."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def drawn(cls, seeds: list[int], height: int, width: int) -> _Places:
        """By at most an eighth of each side, and every other image mirrored."""
        generator = torch.Generator()
        draws = torch.stack([torch.rand(3, generator=generator.manual_seed(seed)) for seed in seeds])
        furthest = torch.tensor([round(height / _SHARE), round(width / _SHARE)])
        down, right = ((draws[:, :2] * (2 * furthest + 1)).long() - furthest).unbind(dim=1)
        across = torch.arange(width)
        columns = torch.where(draws[:, 2:] < 0.5, across.flip(0), across)
        return cls(torch.arange(height) + down[:, None], columns + right[:, None])

    def of(self, images: Tensor, outside: float) -> Tensor:
        """Images `(n, channels, height, width)` with their pixels from there, `outside` where that is no place."""
        height, width = images.shape[-2:]
        inside = _within(self.rows, height)[:, :, None] & _within(self.columns, width)[:, None, :]
        flat = self.rows.clamp(0, height - 1)[:, :, None] * width + self.columns.clamp(0, width - 1)[:, None, :]
        places = flat.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        found = images.flatten(2).gather(2, places).reshape(images.shape)
        return found.masked_fill(~inside[:, None], outside)


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)
