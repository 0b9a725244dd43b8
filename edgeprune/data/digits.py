"""The embedded data set `digits`: 1,797 grey images of 8x8, values 0 to 16 (see datasets/SOURCE.md)."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from edgeprune.data.splits import build, cut
from edgeprune.records import DataSource

FRACTIONS = (0.6, 0.2, 0.2)


def open_digits() -> DataSource:
    """Train, val and test of 60, 20 and 20 %, stratified; x float32 `(1, 8, 8)`, raw 0..16."""
    with (resources.files("edgeprune") / "datasets" / "digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        x = torch.from_numpy(arrays["x"].astype(np.uint8)).unsqueeze(1)
        y = torch.from_numpy(arrays["y"].astype(np.int64))
    return build("digits", cut(x, y, FRACTIONS), [str(digit) for digit in range(10)])
