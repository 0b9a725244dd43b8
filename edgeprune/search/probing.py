"""How much a cut has lost before anything is trained: what strategies that measure first are given."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class Prober(Protocol):
    """What tells how much a cut has lost."""

    def probed(self, module: nn.Module, settled: bool) -> float:
        """The loss on a share of the validation split; batch norm is estimated again first, but where it is settled."""
