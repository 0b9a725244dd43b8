"""What a task asks of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.records import TargetKind

BINARY = ("0", "255")  # the classes of masks that hold these values alone, 255 being class 1


@dataclass(frozen=True, slots=True)
class WantedTargets:
    """What a task wants targets read as; `kind` None leaves it to the data.

    `ignore` is a value of masks that counts nowhere, None if each counts; `ignore_asked` where the user said so.
    `inputs` are the names of the inputs that a network takes, () where the data may say.
    """

    kind: TargetKind | None = None
    ignore: int | None = 255
    inputs: tuple[str, ...] = ()
    ignore_asked: bool = False


def or_values(classes: Sequence[str]) -> str:
    """What a refusal adds where whole numbers were read as classes, as they may be values; else the empty string."""
    if not classes or not all(name.removeprefix("-").isdecimal() for name in classes):
        return ""
    return f"; whole numbers were read as {len(classes):,} classes: if they are values, give --task regression"
