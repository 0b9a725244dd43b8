"""HALO: every group has a strength of shrinkage of its own, which is learned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune.methods.base import Method, Subject, block_names, make_grouper
from edgeprune.optim.groupers import Element

_RATE = 0.01  # how far a step takes the coefficients to where the penalty is least
_LEAST = 0.05  # of the mean coefficient: the strongest shrinkage is 400 times that of the mean


class Halo(Method):
    """The penalty `lam sum_j sqrt(n_j) |w_j| / c_j^2` with learned coefficients c_j of mean 1.

    Seto, Wells and Zhang, HALO: Learning to Prune Neural Networks with Shrinkage, SDM 2021, for groups w_j of n_j
    weights (an element is a group of one). Large groups earn large coefficients and are hardly shrunk. Where the paper
    takes gradient steps on weights and coefficients and cuts small weights off at the end, here the weights make the
    penalty's proximal step, which leaves exact zeros, and the coefficients go a part of the way to where the penalty is
    least, in proportion to (sqrt(n_j) |w_j|)^(1/3). Single weights share one budget over all layers, as in the paper: 1
    is the mean over the network, and a layer of large weights is shrunk less than one of small weights. Larger groups
    have a mean of 1 in each layer: those of different layers differ in size and number, and in one budget a layer of
    many small groups gives way until it is dead. Groups that are zero can come back.

    Options: lam, structure.
    """

    name = "halo"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        structure = make_grouper(subject.options["structure"], subject.module, subject.graph)
        self.lam = float(subject.options["lam"])
        self.together = isinstance(structure, Element)
        self.params = subject.covered(structure, self.name)
        self.groups = structure.bind(list(self.params), list(self.params.values()))
        norms = self._norms()
        self.blocks = block_names(self.groups, list(self.params))
        self.coefficients = {b: torch.ones_like(norm) for b, norm in zip(self.blocks, norms, strict=True)}

    def after_step(self, lr: float) -> None:
        """Shrink the weights, then learn the coefficients."""
        super().after_step(lr)
        with torch.no_grad():
            norms = self._norms()
            factors = [
                (1 - lr * self.lam / (self.coefficients[block].square() * norm)).clamp_(min=0.0).nan_to_num_(0.0)
                for block, norm in zip(self.blocks, norms, strict=True)
            ]
            for own, best in zip(self.coefficients.values(), self._least_penalty(norms), strict=True):
                own.lerp_(best, _RATE).clamp_(min=_LEAST)
            for param, factor in zip(self.params.values(), self.groups.spread_product(factors), strict=True):
                if factor is not None:
                    param.mul_(factor)

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The coefficients."""
        return {"coefficients": self.coefficients}

    def _least_penalty(self, norms: list[Tensor]) -> list[Tensor]:
        """The coefficients with which the penalty of these norms is least, of mean 1 in each budget."""
        sizes = self.groups.sizes
        best = [(norm * size).pow(1 / 3).to(norm.dtype) for norm, size in zip(norms, sizes, strict=True)]
        means = [own.mean() for own in best]
        if self.together:
            means = [torch.cat([own.flatten() for own in best]).mean()] * len(best)
        return [own / mean if mean > 0 else torch.ones_like(own) for own, mean in zip(best, means, strict=True)]

    def _norms(self) -> list[Tensor]:
        """Of each group the root mean square: its l2 norm over sqrt(n), since the step is sqrt(n) long."""
        norms = self.groups.norms([param.detach() for param in self.params.values()], 2)
        sizes = self.groups.sizes
        return [(norm / size**0.5).to(norm.dtype) for norm, size in zip(norms, sizes, strict=True)]
