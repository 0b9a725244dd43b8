"""How far the outputs of networks are from those of the dense one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from edgeprune.graph.owninputs import spared
from edgeprune.reconstruction.samples import Piece

CONSTANT = 1e-12  # of its mean square: what a value of float32 varies by when it varies by rounding alone


def errors(dense: fx.GraphModule, networks: Sequence[fx.GraphModule], samples: Sequence[Piece]) -> list[float]:
    """For each network the root of the mean square that its outputs are off, relative to how the dense ones' vary.

    Outputs of several tensors count alike; what is not finite makes it infinite.
    """
    wanted = [_outputs(dense, piece) for piece in samples]
    found = []
    for network in networks:
        given = [_outputs(network, piece) for piece in samples]
        parts = [_error(list(want), list(got)) for want, got in zip(zip(*wanted), zip(*given))]  # noqa: B905
        error = math.sqrt(sum(parts) / max(1, len(parts)))
        found.append(error if math.isfinite(error) else math.inf)
    return found


def _outputs(network: fx.GraphModule, piece: Piece) -> list[Tensor]:
    """The outputs that are floating-point numbers, in float64."""
    with torch.no_grad():
        result = fx.Interpreter(network).run(*spared(network, piece), enable_io_processing=False)
    return [leaf.double() for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _error(want: list[Tensor], got: list[Tensor]) -> float:
    """The mean square that one output is off, over its variance; over its size where it does not vary."""
    count = sum(tensor.numel() for tensor in want)
    mean = sum(float(tensor.sum()) for tensor in want) / max(1, count)
    varies = sum(float((tensor - mean).square().sum()) for tensor in want)
    size = sum(float(tensor.square().sum()) for tensor in want)
    off = sum(float((one - other).square().sum()) for one, other in zip(want, got, strict=True))
    return off / ((varies if varies > CONSTANT * size else size) or max(1, count))
