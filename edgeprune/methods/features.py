"""Induced feature selection: the network is trained while the input features that it needs least are taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.importance import check_count, kept_features
from edgeprune.methods.base import Subject
from edgeprune.methods.masks import Masked
from edgeprune.methods.schedules import SCHEDULES
from edgeprune.optim import ChannelGroups
from edgeprune.optim.channels import UnitGroups

_AVERAGED = 0.01  # weight of the present step in a running mean
_UPDATES = 100


class FeatureSelection(Masked):
    """Every k steps the input features that matter least go, as many as the schedule says, while the rest is trained.

    A feature's score is the running mean of its squared first-order effect on the loss, the sum of w times gradient
    over the weights that read it (Molchanov et al., CVPR 2019), for each feature of a unit and for what the graph says
    of its price. Near features repeat each other, so that a ranking of the trained network's features keeps too much of
    the same: here the others take over what a removed one told, before the next are chosen (Induced Feature Selection
    by Structured Pruning, step 1).

    Options: n_features, prune_schedule, prune_every (default: a hundredth of the training).

    Raises:
        InputError: the network has no input features that can go, or not so few as are asked for, or n_features is
            missing.
    """

    name = "feature-selection"
    groups: UnitGroups

    def __init__(self, subject: Subject) -> None:
        options, graph = subject.options, subject.graph
        assert graph is not None
        inputs = tuple(number for number, group in enumerate(graph.groups) if group.is_input)
        if not inputs:
            raise InputError(
                f"method {self.name}: expected a network with input features that can be removed, got none (a "
                "convolution shares its weights over all positions, so that single pixels cannot go)"
            )
        self.graph = replace(graph, groups=tuple(graph.groups[number] for number in inputs))
        super().__init__(subject, ChannelGroups(self.graph))
        self.n_fixed, self.sizes = self.graph.features()
        self.prices = self.graph.price_factors()
        self.n_all = self.n_fixed + int(sum(size.sum() for size in self.sizes))
        if "n_features" not in options:
            raise InputError(f"method {self.name}: expected n_features, 1 to {self.n_all}, got none")
        self.n_kept = int(options["n_features"])
        check_count(self.graph, self.n_kept, f"method {self.name}: input features")
        self.schedule = SCHEDULES[options["prune_schedule"]]
        self.every = int(options.get("prune_every", max(1, subject.n_steps // _UPDATES)))
        self.effects = {block: torch.zeros_like(own, dtype=torch.float32) for block, own in self.inside.items()}

    @property
    def n_features(self) -> int:
        """How many features the network reads now."""
        return self.n_all - int(
            sum(size[~own].sum() for size, own in zip(self.sizes, self._by_group(self._inside(), True), strict=True))
        )

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Also the running means."""
        return {**super().kept(), "effects": self.effects}

    def _choose(self, scale: float) -> None:
        effects = self.groups.totals([_effect(param, scale) for param in self.params.values()])
        for average, effect in zip(self.effects.values(), effects, strict=True):
            average.lerp_(effect.square().to(average.dtype).nan_to_num_(0.0, 0.0, 0.0), _AVERAGED)
        if (self.step + 1) % self.every and self.done < 1:
            return
        n_kept = self.n_all - round((self.n_all - self.n_kept) * self.schedule(self.done))
        kept = self._most_important(n_kept)
        for block, own in zip(self.blocks, kept, strict=True):
            self.inside[block] = torch.from_numpy(own).to(self.inside[block].device)

    def _most_important(self, n_kept: int) -> list[np.ndarray]:
        """Bool `(n_units,)` for each block: which units stay so that at most `n_kept` features do."""
        costs = [self.sizes[number].clip(min=1) * self.prices[number] for number in self._numbers()]
        effects = [average.cpu().numpy() for average in self.effects.values()]
        own = [effect / cost for effect, cost in zip(effects, costs, strict=True)]
        worth, present = self._by_group(own, np.inf), self._by_group(self._inside(), True)
        # What is to be left at the end stays all the way: of features that only go together the best may fill up what
        # is kept now and not fit later, when those that would have are gone.
        at_last, _ = kept_features(self.graph, worth, present, self.n_kept)
        first = [np.where(own, np.inf, value) for own, value in zip(at_last, worth, strict=True)]
        stays, _ = kept_features(self.graph, first, present, n_kept)
        return [stays[number] for number in self._numbers()]

    def _inside(self) -> list[np.ndarray]:
        return [own.cpu().numpy() for own in self.inside.values()]

    def _by_group(self, values: list[np.ndarray], rest: float) -> list[np.ndarray]:
        """Values of the blocks, `(n_units,)` each, by group; `rest` for one without a block, which stays whole."""
        found = [np.full(group.n_units, rest) for group in self.graph.groups]
        for number, own in zip(self._numbers(), values, strict=True):
            found[number] = own
        return found

    def _numbers(self) -> list[int]:
        """The number of each block's group; a group that no trained weight reads has no block."""
        return [int(block.split(" ")[0]) for block in self.groups.blocks]


def _effect(param: torch.nn.Parameter, scale: float) -> Tensor:
    if param.grad is None:
        return torch.zeros_like(param)
    return param.detach() * param.grad / scale
