"""Which widths a layer may have: multiples that kernels work best on, as long as budgets can be met with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprune.graph.groups import ChannelGroup

MULTIPLE = 8  # channels, where nobody says it
WIDE = 64  # channels: narrower layers lose more by coarse widths than kernels gain
_CHOICES = 8  # widths that a narrow layer can choose from at least


@dataclass(frozen=True, slots=True)
class Alignment:
    """Widths are multiples of `multiple` where a layer is at least as wide, and of a device's `stair`.

    A stair is halved for a layer that does not hold two of them. Where nobody said the multiple it `narrows`: layers of
    fewer than 64 channels are judged by the stairs alone, or where there are none (1) have eight widths to choose from.
    """

    multiple: int = MULTIPLE
    stair: int = 1
    narrows: bool = False

    @classmethod
    def asked(cls, align: int | None, stair: int = 1) -> Alignment:
        """What is meant by `align`; None where nothing was said."""
        return cls(MULTIPLE if align is None else align, stair, align is None)

    def giving_way(self) -> Iterator[Alignment]:
        """This one and ever finer ones: the stair goes first, then the multiple is halved, down to any width."""
        yield self
        multiple = self.multiple
        if self.stair > 1:
            yield Alignment(multiple, 1, self.narrows)
        while multiple > 1:
            multiple = multiple // 2 if multiple % 2 == 0 else 1
            yield Alignment(multiple, 1, self.narrows)

    def step(self, group: ChannelGroup) -> int:
        """How many units of a group go at a time so that its width stays such a multiple."""
        if group.is_input:
            return 1
        multiple, stair = self._within(group.n_units * group.indices_per_unit), self.stair
        least = multiple // math.gcd(multiple, group.indices_per_unit)
        if group.n_units < least:
            return 1
        both = math.lcm(multiple, stair)
        widths = (both >> halved for halved in range(both.bit_length()) if (both >> halved) % multiple == 0)
        steps = (width // math.gcd(width, group.indices_per_unit) for width in widths)
        return next((step for step in steps if 2 * step <= group.n_units), least)

    def multiple_at(self, width: int) -> int:
        """What the width of a layer that is this wide should be a multiple of."""
        multiple = self._within(width)
        both = math.lcm(multiple, self.stair)
        halved = (both >> n for n in range(both.bit_length()) if (both >> n) % multiple == 0)
        return next((one for one in halved if 2 * one <= width), min(multiple, max(1, width)))

    def _within(self, width: int) -> int:
        """The multiple for a layer of so many channels."""
        if not self.narrows or width >= WIDE:
            return self.multiple
        finest = 1 << max(0, (width // _CHOICES).bit_length() - 1)
        return 1 if self.stair > 1 else min(self.multiple, finest)


def told(aligned: int | None) -> tuple[str, ...]:
    """What is said of a plan whose alignment had to give way, to multiples of `aligned`; nothing where it had not."""
    if aligned is None:
        return ()
    widths = "any" if aligned == 1 else f"multiples of {aligned}"
    return (f"widths are {widths}: the budgets cannot be met by coarser ones",)
