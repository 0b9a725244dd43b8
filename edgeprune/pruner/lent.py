"""The module that a loop trains: handed out of the network that a Pruner stands at, and its weights taken back."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from edgeprune.graph.capture import Program
from edgeprune.pruner.modules import check_no_other, check_origin, device_of, handed_out, parameters_of
from edgeprune.pruner.network import Network


class Lent:
    """One network of the way, and the module of it that is out, if any.

    `network` is as it was before the module learnt; `device` is where the module lies, or will lie.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network, self.device = network, device
        self._module: nn.Module | None = None
        self._giver: Program | None = None
        self._replaced: dict[str, nn.Parameter] = {}

    @property
    def module(self) -> nn.Module:
        """What is out, handed out now where nothing was."""
        if self._module is None:
            self._giver = self.network.program
            self._module = handed_out(self._giver, self.device)
        return self._module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of the module that is out, or was until other weights were taken, by name; none where none ever was."""
        return self._replaced if self._module is None else parameters_of(self._module, self.network.program)

    def taken_back(self) -> Network:
        """The network with what the module that is out has learnt.

        Raises:
            InputError: the module is another one now, or a copy of it was trained in its place.
        """
        if self._module is None:
            return self.network
        assert self._giver is not None
        self.device = device_of(self._module)
        program = self._giver.with_weights(self._module)
        check_no_other(self._module, self._giver)
        return replace(self.network, program=program)

    def take(self, module: nn.Module) -> None:
        """Take the weights of this module in the place of the one that is out; left as it was.

        Raises:
            InputError: it is of another program, of other shapes, or computes something else.
        """
        giver = self._giver or self.network.program
        check_origin(module, giver)
        program = giver.with_weights(module)
        self._replaced = self.parameters  # an optimizer may train them still
        self.network, self._module, self._giver = replace(self.network, program=program), None, None
