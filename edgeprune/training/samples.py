"""What a process trains on: its share of each batch, changed, mixed and prepared by the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.data import Inputs, Share, prepared, read
from edgeprune.data.inputs import FloatTypes, changed
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training.augment import Augmentation
from edgeprune.training.judging import Judge
from edgeprune.training.mixing import Mixing


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The training split as the steps take it, for a network on a device, of a type."""

    data: DataSource
    judge: Judge
    settings: TrainSettings
    share: Share
    device: torch.device
    dtype: FloatTypes

    @property
    def mixing(self) -> Mixing:
        """What becomes of the targets, and of the samples that are mixed."""
        return Mixing(self.settings.recipe, len(self.data.classes))

    def of(self, parts: Sequence[Tensor], seed: int) -> Iterator[tuple[Inputs, Any]]:
        """Inputs and targets of this process's share of each part; where it has none, a sample that does not count.

        Args:
            parts: the indices `(n,)` of the samples that are computed at once, over all processes, of an epoch.
            seed: the epoch's.
        """
        mixing = self.mixing
        needs_before = mixing.mixes and self.share.n_ranks > 1
        indices = [self.share.of(part) if len(self.share.of(part)) else part[:1] for part in parts]
        if needs_before:
            indices = [_with_before(part, own) for part, own in zip(parts, indices, strict=True)]
        found = read(self.data.train, indices, self.settings.workers, seed, self._augmentation(seed))
        for number, (raw, targets) in enumerate(found):
            x = prepared(raw, self.judge.normalization, self.device, self.dtype)
            y = self.judge.targets(x, targets)
            if mixing.softens:
                x, y = mixing(x, y, seed, number)
            if needs_before:
                x, y = changed(x, lambda rows: rows[1:]), y[1:]
            yield self._laid_out(x), y

    def _laid_out(self, x: Inputs) -> Inputs:
        if not self.settings.channels_last:
            return x
        return changed(x, lambda images: images.contiguous(memory_format=torch.channels_last))

    def _augmentation(self, seed: int) -> Augmentation | None:
        """How the images of an epoch are changed; None where they are not."""
        kind, task = self.settings.recipe.augment, self.judge.task
        if kind == "none":
            return None
        moves_masks = self.data.targets.kind == "masks" and not task.by_reference
        return Augmentation(kind, seed, self.data.byte_scale, task.ignored if moves_masks else None)


def _with_before(part: Tensor, own: Tensor) -> Tensor:
    """A process's own samples behind the one before them in their part, with which their first is mixed."""
    start = int((part == own[0]).nonzero()[0, 0])
    return torch.cat([part[start - 1 : start] if start else part[-1:], own])
