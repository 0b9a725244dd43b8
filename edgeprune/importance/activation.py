"""What flows through a network on real inputs: the mean size of each channel where weights meet it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.data.inputs import Inputs, arguments_of
from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.graph import binding
from edgeprune.graph.capture import Program
from edgeprune.graph.ops.contraction import is_transposed
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.owninputs import spared

Batches = Iterable[tuple[Inputs, Any]]  # normalised inputs and targets
_Sums = Mapping[tuple[str, int], tuple[Tensor, int]]  # of the sizes of each channel, and how many they are


def mean_activations(
    program: ExportedProgram, batches: Batches, ranks: Ranks = ALONE
) -> dict[tuple[str, int], np.ndarray] | None:
    """The mean size of each channel that a weight produces (dim 0) or reads (dim 1), by the weight's name and dim.

    Of linear layers and convolutions, not transposed ones; what a grouped one reads is left out. None where there are
    no batches. Each of several processes has batches of its own, and gets the means over all.
    """
    module = Program.adopt(program).module()
    watch = _Watch(module)
    n_batches = 0
    with torch.no_grad():
        for x, _ in batches:
            watch.run(*spared(watch, arguments_of(module, x)))
            n_batches += 1
    found = _joined(ranks.gathered([watch.found] if n_batches else []))
    return None if found is None else {key: (total / count).numpy() for key, (total, count) in found.items()}


def _joined(parts: list[_Sums]) -> _Sums | None:
    """The sums of all parts, which are of the same channels; None where there are none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return {
        key: (torch.stack([part[key][0] for part in parts]).sum(0), sum(part[key][1] for part in parts))
        for key in parts[0]
    }


class _Watch(fx.Interpreter):
    """Sums up `|x|` over all samples and positions, and counts them."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        kind = kind_of(n.target) if n.op == "call_function" else None
        if kind is Kind.LINEAR or (kind is Kind.CONVOLUTION and not is_transposed(binding.bind(n, lambda node: node))):
            self._look(n, result, is_linear=kind is Kind.LINEAR)
        return result

    def _look(self, n: fx.Node, result: Tensor, is_linear: bool) -> None:
        weight, x = n.args[1], n.args[0]
        if isinstance(weight, fx.Node) and weight.op == "get_attr" and isinstance(x, fx.Node):
            dim = -1 if is_linear else 1
            self._add((str(weight.target), 0), result, dim)
            given = self.env[x]
            if is_linear or given.shape[1] == self.env[weight].shape[1]:
                self._add((str(weight.target), 1), given, dim)

    def _add(self, key: tuple[str, int], value: Tensor, dim: int) -> None:
        sizes = value.abs().double().movedim(dim, 0).flatten(1)
        total, count = self.found.get(key, (torch.zeros(len(sizes), dtype=torch.float64), 0))
        self.found[key] = (total + sizes.sum(1), count + sizes.shape[1])
