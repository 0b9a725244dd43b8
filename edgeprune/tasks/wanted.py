"""What a task asks of data."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import TargetKind


@dataclass(frozen=True, slots=True)
class WantedTargets:
    """What a task wants targets read as; `kind` None leaves it to the data.

    `ignore` is a value of masks that counts nowhere, None if each counts. `inputs` are the names of the inputs that
    a network takes, () where the data may say.
    """

    kind: TargetKind | None = None
    ignore: int | None = 255
    inputs: tuple[str, ...] = ()
