"""Prune and regrow: as many weights as go every k steps come back where they are needed more."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune.methods.base import Subject, generator, make_grouper
from edgeprune.methods.masks import Masked, exchanged

_MOVED = 0.3  # share of the weights that change places at the first update
_STOP = 0.75  # of the training: from then on nothing moves
_MOMENTUM = 0.9
_UPDATES = 100


class Regrow(Masked):
    """Sparse from the first step on: every k steps the smallest weights go and as many others come back, from zero.

    Those with the largest gradient (RigL: Evci et al., ICML 2020, algorithm 1), the largest running mean of it (sparse
    momentum: Dettmers and Zettlemoyer, 2019), or at random (SET: Mocanu et al., Nature Communications 2018). At x of
    the three quarters of the training in which weights move, 0.3 / 2 (1 + cos(pi x)) of them do. Each layer has the
    same share of zeros all the time, at random places at first.

    Options: sparsity, regrow (gradient, momentum, random), prune_every (default: a hundredth of the training).
    """

    name = "regrow"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject, make_grouper("element", subject.module, None))
        options = subject.options
        self.by = options["regrow"]
        self.every = int(options.get("prune_every", max(1, subject.n_steps // _UPDATES)))
        share, draws = float(options["sparsity"]), generator(subject.seed, -1)
        for own in self.inside.values():
            n_out = min(round(share * own.numel()), own.numel() - 1)
            own.view(-1)[torch.randperm(own.numel(), generator=draws)[:n_out].to(own.device)] = False
        self.averages: dict[str, Tensor] = {}
        if self.by == "momentum":
            self.averages = {name: torch.zeros_like(param) for name, param in self.params.items()}
        self.finish()

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Also the running means."""
        return {**super().kept(), "averages": self.averages}

    def _choose(self, scale: float) -> None:
        for name, average in self.averages.items():
            average.lerp_(self._gradient(name, scale), 1 - _MOMENTUM)
        x = self.done / _STOP
        if (self.step + 1) % self.every or x >= 1:
            return
        moved = _MOVED / 2 * (1 + math.cos(math.pi * x))
        draws = generator(self.subject.seed, self.step)
        for (name, param), own in zip(self.params.items(), self.inside.values(), strict=True):
            n_moved = int(moved * own.sum())
            after = exchanged(param.detach(), own, self._wanted(name, scale, draws), n_moved)
            param.detach().mul_(own & after)
            own.copy_(after)

    def _wanted(self, name: str, scale: float, draws: torch.Generator) -> Tensor:
        """The larger, the sooner a weight comes back."""
        if self.by == "random":
            own = self.params[name]
            return torch.rand(own.shape, generator=draws).to(own.device)
        return self.averages[name].abs() if self.by == "momentum" else self._gradient(name, scale).abs()

    def _gradient(self, name: str, scale: float) -> Tensor:
        param = self.params[name]
        if param.grad is None:
            return torch.zeros_like(param)
        return (param.grad / scale).nan_to_num_(0.0, 0.0, 0.0)
