"""Distillation by features: a network that was cut learns what the dense one's kept channels hold in between, too.

Romero et al., FitNets: Hints for Thin Deep Nets, 2015 (arXiv 1412.6550), learn a projection between both widths. A plan
says which channels stayed, so that they are compared as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgeprune.graph.modes import recompile
from edgeprune.tasks.wholebatch import batch_mean


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """A value of both networks: of the dense one the channels that were `kept` along a `dim`, None for all of them."""

    slim: fx.Node
    dense: fx.Node
    dim: int
    kept: tuple[int, ...] | None = None


class Features:
    """What two networks hold at some taps while they run; both graphs are as they were once nobody watches.

    Args:
        module: the slim network, which trains.
        teacher: the dense one.
        taps: nodes of their graphs, at least one.
    """

    def __init__(self, module: fx.GraphModule, teacher: fx.GraphModule, taps: Sequence[Tap]) -> None:
        self.teacher = teacher
        self._module, self._taps = module, taps
        self._seen: dict[tuple[int, bool], Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, each run of either network leaves its values."""
        added = [
            (network, _watching(network, node, self._keeping(number, is_dense)))
            for number, tap in enumerate(self._taps)
            for network, node, is_dense in ((self._module, tap.slim, False), (self.teacher, tap.dense, True))
        ]
        self._recompile()
        try:
            yield
        finally:
            for network, node in added:
                network.graph.erase_node(node)
            self._recompile()
            self._seen.clear()

    def distance(self) -> Tensor:
        """The mean over the taps of the squared error relative to the variance of the dense values, `()`.

        Of the samples that both networks were run on last; where dense values do not vary nothing is learnt.
        """
        return torch.stack([self._distance(number, tap) for number, tap in enumerate(self._taps)]).mean()

    def _distance(self, number: int, tap: Tap) -> Tensor:
        got, wanted = self._seen[number, False].float(), self._seen[number, True].detach().float()
        if tap.kept is not None:
            wanted = wanted.index_select(tap.dim, torch.tensor(tap.kept, device=wanted.device))
        variance = _variance(wanted)
        return torch.where(variance > 0, F.mse_loss(got, wanted) / torch.where(variance > 0, variance, 1.0), 0.0)

    def _keeping(self, number: int, is_dense: bool) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            self._seen[number, is_dense] = value.clone()  # it may be changed in place later on

        return keep

    def _recompile(self) -> None:
        for network in (self._module, self.teacher):
            recompile(network)


def _variance(x: Tensor) -> Tensor:
    """That of all values over the whole batch, `()`."""
    own = x.mean()
    return batch_mean(x.var(correction=0) + (own - batch_mean(own)).square())


def _watching(network: fx.GraphModule, node: fx.Node, keep: Callable[[Tensor], None]) -> fx.Node:
    """A call behind a node, whose result nobody reads."""
    with network.graph.inserting_after(node):
        return network.graph.call_function(keep, (node,))
