"""What a method of sparse training is: what the forward pass sees, what becomes of the gradients, what is left.

The loop calls, for every step, `begin`, then the passes, `end`, the optimizer's step and `after_step`; around an
evaluation `begin` and `end`; and `finish` when all steps are done. Between `end` and `begin` the module holds the
weights that are trained, so that optimizers, checkpoints and other processes need not know of the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.cost.limits import Aim
from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.optim import ChannelGroups, InputColumn, OutputChannel, transposed_weights
from edgeprune.optim.groupers import Grouper, Groups, grouper


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a method works on.

    `graph` is there where the method needs the channel groups; `n_steps` are those of the whole training; `options` are
    the method's, see `catalog.py`; `aim` is what the network may cost where the options do not say it.
    """

    module: nn.Module
    graph: ChannelGraph | None
    n_steps: int
    options: Mapping[str, Any]
    seed: int = 0
    aim: Aim | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that are trained, by name."""
        return {name: param for name, param in self.module.named_parameters() if param.requires_grad}

    def covered(self, structure: Grouper, method: str) -> dict[str, nn.Parameter]:
        """The parameters that have groups.

        Raises:
            InputError: there are none.
        """
        found = {name: param for name, param in self.parameters().items() if structure.covers(name, param)}
        if not found:
            kind = type(self.module).__name__
            raise InputError(
                f"method {method}: expected a network with weights for {structure.name}, got none in {kind}"
            )
        return found


class Method:
    """A training without a method; the methods say what they do otherwise.

    `step` counts the steps that are done. What it keeps is in `state_dict`, and the same state goes on bit for bit.
    """

    name = ""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.step = 0

    @property
    def done(self) -> float:
        """The share of the training that is done, in [0, 1]; 1 in and after its last step."""
        return min(1.0, (self.step + 1) / max(1, self.subject.n_steps))

    @property
    def n_features(self) -> int | None:
        """How many input features are left; None where the method leaves them alone."""
        return None

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """What the optimizer steps on, by name: the module's parameters, unless the method has others for them."""
        return self.subject.module.named_parameters()

    def begin(self, training: bool) -> None:
        """Put into the module what the coming passes are to see."""

    def end(self, scale: float | None) -> None:
        """Put the trained weights back, and make the gradients those of what is trained.

        Args:
            scale: what half precision has multiplied the gradients with, 1 as a rule; None where there are none.
        """

    def after_step(self, lr: float) -> None:
        """The optimizer has made a step with this learning rate."""
        self.step += 1

    def finish(self) -> None:
        """Leave the module as it is to be: its weights exactly zero where the method removed them."""

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module as it is to be measured."""
        self.begin(training=False)
        try:
            yield
        finally:
            self.end(None)

    def state_dict(self) -> dict[str, Any]:
        """What goes on, as plain values and tensors."""
        return {"step": self.step, **{name: _copied(value) for name, value in self.kept().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ValueError or KeyError where it is another method's or network's."""
        self.step = int(state["step"])
        for name, own in self.kept().items():
            for key, tensor in own.items():
                other = state[name][key]
                if other.shape != tensor.shape or other.dtype != tensor.dtype:
                    raise ValueError(
                        f"{self.name} {name} {key}: expected {tuple(tensor.shape)}, got {tuple(other.shape)}"
                    )
                tensor.copy_(other)

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The tensors that are a method's state, in families; loading writes into them."""
        return {}


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def make_grouper(structure: str, module: nn.Module, graph: ChannelGraph | None) -> Grouper:
    """The grouper of a structure, which knows the transposed convolutions of this network, or its channel groups."""
    if structure == "channel-group":
        assert graph is not None
        return ChannelGroups(graph)
    transposed = transposed_weights(module)
    if structure == "channel":
        return OutputChannel(transposed)
    return InputColumn(transposed) if structure == "input-column" else grouper(structure)


def block_names(groups: Groups, names: Sequence[str]) -> list[str]:
    """A name for each block of groups over the parameters of these names, unique among them."""
    return [f"{names[owner]} {block}".rstrip() for owner, block in zip(groups.owners, groups.blocks, strict=True)]


def generator(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on the step alone, so that all processes, and a resumed training, draw the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
