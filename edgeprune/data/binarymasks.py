"""Masks of 0 and 255 alone, as programs that draw them write black and white: 255 is then class 1."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgeprune.tasks.wanted import BINARY, WantedTargets

NOTE = "255 in the masks is read as class 1, as they hold 0 and 255 alone"
_WHITE = 255


def is_binary(values: Iterable[np.ndarray], n_named: int, wanted: WantedTargets) -> bool:
    """Whether masks are black and white, by the values `(k,)` of each split or file: all together hold 0 and 255.

    They are not where either is ignored because the user said so, or where the classes have names and are not two.
    """
    held = {int(value) for own in values for value in own}
    said = wanted.ignore_asked and wanted.ignore in held
    return held == {0, _WHITE} and n_named in (0, len(BINARY)) and not said


def from_binary(y: np.ndarray) -> np.ndarray:
    """Masks of 0 and 255 as those of classes 0 and 1, uint8."""
    classes: np.ndarray = (y == _WHITE).astype(np.uint8)
    return classes
