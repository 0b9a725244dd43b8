"""Targets as shares of the classes: smoothed, and mixed with their images by torchvision's MixUp and CutMix."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.data.inputs import Inputs, one_tensor
from edgeprune.settings import Recipe

_SEEDS = 2**32  # as many are told apart


@dataclass(frozen=True, slots=True)
class Mixing:
    """What becomes of batches for a task whose losses take shares of the classes.

    Each sample is mixed with the one before it in the batch, by one share for the whole batch, which depends on the
    seed, the epoch and the step alone.
    """

    recipe: Recipe
    n_classes: int

    @property
    def softens(self) -> bool:
        """Whether targets become shares."""
        return self.mixes or self.recipe.label_smoothing > 0

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed."""
        return self.recipe.mixup > 0 or self.recipe.cutmix > 0

    def __call__(self, x: Inputs, classes: Tensor, seed: int, number: int) -> tuple[Inputs, Tensor]:
        """Inputs `(n, ...)` and the float32 shares `(n, n_classes)` to train for.

        Args:
            classes: int64 `(n,)`.
            seed: the epoch's.
            number: that of the part of a batch among all of the epoch, the same for each process that has some of it.
        """
        shares = F.one_hot(classes, self.n_classes).to(torch.float32)
        if self.mixes:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed((seed * 1_000_003 + number) % _SEEDS)
                x, shares = self._chosen()(one_tensor(x, "mixup and cutmix"), shares)
        smoothing = self.recipe.label_smoothing
        return x, shares * (1 - smoothing) + smoothing / self.n_classes

    def _chosen(self) -> Any:
        """The one of both that is asked for; of two, one for each batch, at random."""
        import edgeprune.compat  # noqa: F401 - torchvision can be imported after it

        transforms = importlib.import_module("torchvision.transforms.v2")
        asked = {transforms.MixUp: self.recipe.mixup, transforms.CutMix: self.recipe.cutmix}
        found = [build(alpha=alpha) for build, alpha in asked.items() if alpha > 0]
        return found[int(torch.randint(len(found), ()))] if len(found) > 1 else found[0]
