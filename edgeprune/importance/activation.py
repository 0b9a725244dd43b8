"""What flows through a network on real inputs: the mean size of each channel where weights meet it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program

Batches = Iterable[tuple[Tensor, Tensor]]
_aten = torch.ops.aten
_CONVOLUTIONS = (
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
    _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding,
)  # fmt: skip


def mean_activations(program: ExportedProgram, batches: Batches) -> dict[tuple[str, int], np.ndarray] | None:
    """The mean size of each channel that a weight produces (dim 0) or reads (dim 1), by the weight's name and dim.

    Of linear layers and convolutions; what a grouped convolution reads is left out. None where there are no batches.
    """
    module = Program.adopt(program).module()
    watch = _Watch(module)
    n_batches = 0
    with torch.no_grad():
        for x, _ in batches:
            watch.run(x)
            n_batches += 1
    if n_batches == 0:
        return None
    return {key: (total / count).numpy() for key, (total, count) in watch.found.items()}


class _Watch(fx.Interpreter):
    """Sums up `|x|` over all samples and positions, and counts them."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_linear = n.target is _aten.linear.default
        if not is_linear and n.target not in _CONVOLUTIONS:
            return result
        weight, x = n.args[1], n.args[0]
        if isinstance(weight, fx.Node) and weight.op == "get_attr" and isinstance(x, fx.Node):
            dim = -1 if is_linear else 1
            self._add((str(weight.target), 0), result, dim)
            given = self.env[x]
            if is_linear or given.shape[1] == self.env[weight].shape[1]:
                self._add((str(weight.target), 1), given, dim)
        return result

    def _add(self, key: tuple[str, int], value: Tensor, dim: int) -> None:
        sizes = value.abs().double().movedim(dim, 0).flatten(1)
        total, count = self.found.get(key, (torch.zeros(len(sizes), dtype=torch.float64), 0))
        self.found[key] = (total + sizes.sum(1), count + sizes.shape[1])
