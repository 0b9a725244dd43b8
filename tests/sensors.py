"""A table of sensors that two test files choose features of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NAMES = ("ax", "ay", "az", "gx", "gy", "gz", "temperature", "load")


def sensors_in(folder: Path) -> Path:
    """A table whose class is told by `ax` and `gy` alone, `az` is a copy of `ax`, and the rest is noise."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(1500, 8))
    x[:, 2] = x[:, 0] + 0.02 * draws.normal(size=1500)
    y = (x[:, 0] > 0).astype(int) + 2 * (x[:, 4] > 0)
    path = folder / "sensors.csv"
    lines = [",".join((*NAMES, "state")), *(",".join(map(str, [*row, state])) for row, state in zip(x, y, strict=True))]
    path.write_text("\n".join(lines))
    return path
