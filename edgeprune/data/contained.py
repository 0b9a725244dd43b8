"""Images that lie in other files, in shards or tables: read one by one, in any order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.data.framing import Framing
from edgeprune.data.images import looked_at
from edgeprune.data.pixels import to_pixels


class ContainedImages(Dataset[Any], ABC):
    """Images by their numbers; a sample is x float32 `framing.shape` in 0..1 and its target, None where there are none.

    Whoever is one says where its images are before it begins: some of them are looked at.
    """

    def __init__(self, targets: Tensor | None, framing: Framing) -> None:
        self.targets, self.framing = targets, framing
        notes, self.byte_scale = looked_at(len(self), self.opened, self.name)
        self.notes = (*framing.notes, *notes)

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where a sample lies, for messages."""

    @abstractmethod
    def opened(self, index: int) -> AbstractContextManager[Any]:
        """The image of a sample, as `images.opened`."""

    @property
    def labels(self) -> np.ndarray | None:
        """The targets `(n,)`, apart from the images."""
        return None if self.targets is None else self.targets.numpy()

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        with self.opened(index) as image:
            x = to_pixels(image, self.framing, self.name(index))
        if self.targets is None:
            return x, None
        y = self.targets[index]
        return x, y if y.is_floating_point() else int(y)
