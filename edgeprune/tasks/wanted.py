"""What a task asks of data."""

from __future__ import annotations

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
