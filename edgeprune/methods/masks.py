"""Groups of weights that are in or out: which ones score lowest, and zeros that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeprune.methods.base import Method, Subject, block_names
from edgeprune.optim.groupers import Grouper


class Masked(Method):
    """Groups that are out are zero after each step and get no gradient.

    A subclass decides in `_choose`, which is called with the gradients of each step, before they are masked.
    """

    def __init__(self, subject: Subject, structure: Grouper) -> None:
        super().__init__(subject)
        self.params = subject.covered(structure, self.name)
        self.groups = structure.bind(list(self.params), list(self.params.values()))
        norms = self.groups.norms(self._weights(), 1)
        self.blocks = block_names(self.groups, list(self.params))
        self.inside: dict[str, Tensor] = {
            block: torch.ones_like(norm, dtype=torch.bool) for block, norm in zip(self.blocks, norms, strict=True)
        }

    def end(self, scale: float | None) -> None:
        """Choose, then take the gradients of what is out."""
        if scale is None:
            return
        with torch.no_grad():
            self._choose(scale)
            for param, factor in self._factors():
                if param.grad is not None:
                    param.grad.mul_(factor)

    def after_step(self, lr: float) -> None:
        """Weight decay and momentum must not bring back what is out."""
        super().after_step(lr)
        self.finish()

    def finish(self) -> None:
        """What is out is zero."""
        with torch.no_grad():
            for param, factor in self._factors():
                param.mul_(factor)

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Which groups are in."""
        return {"inside": self.inside}

    def _choose(self, scale: float) -> None:
        raise NotImplementedError

    def _weights(self) -> list[Tensor]:
        return [param.detach() for param in self.params.values()]

    def _factors(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with its mask of zeros and ones, which broadcasts to it."""
        dtype = next(iter(self.params.values())).dtype
        factors = self.groups.spread_product([self.inside[block].to(dtype) for block in self.blocks])
        return [(p, factor) for p, factor in zip(self.params.values(), factors, strict=True) if factor is not None]


def keep_highest(scores: Sequence[Tensor], inside: Sequence[Tensor], share: float, together: bool) -> list[Tensor]:
    """Which groups stay when this share of them is to be out; what is out stays out, and one of each block stays.

    Args:
        scores: for each block one a group, any shape.
        inside: bool, shaped so.
        share: to be out, in [0, 1]; of each block, or of all of them `together`.
    """
    ranked = [torch.where(own, score.double(), -torch.inf) for score, own in zip(scores, inside, strict=True)]
    if not together:
        return [highest(rank, min(round(share * rank.numel()), rank.numel() - 1)) for rank in ranked]
    for rank in ranked:
        rank.view(-1)[rank.argmax()] = torch.inf
    every = torch.cat([rank.reshape(-1) for rank in ranked])
    n_out = min(round(share * len(every)), len(every) - len(ranked))
    parts = highest(every, n_out).split([rank.numel() for rank in ranked])
    return [part.view(rank.shape) for part, rank in zip(parts, ranked, strict=True)]


def exchanged(weight: Tensor, inside: Tensor, wanted: Tensor, n_moved: int) -> Tensor:
    """Which weights are in after the smallest `n_moved` of a tensor have gone and as many others have come.

    Args:
        weight: any shape; `inside` bool, shaped so, says which are in.
        wanted: shaped so; of those that are out, also of those that just went, the largest come back.
    """
    small = torch.where(inside, weight.abs(), torch.inf).view(-1).argsort(stable=True)[:n_moved]
    after = inside.clone()
    after.view(-1)[small] = False
    large = torch.where(after, -torch.inf, wanted).view(-1).argsort(descending=True, stable=True)[:n_moved]
    after.view(-1)[large] = True
    return after


def highest(ranks: Tensor, n_out: int) -> Tensor:
    """All but the `n_out` lowest, of equals the first."""
    kept = torch.ones_like(ranks, dtype=torch.bool)
    kept.view(-1)[ranks.reshape(-1).argsort(stable=True)[:n_out]] = False
    return kept
