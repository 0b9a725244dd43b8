"""Distances computed directly, which ONNX's exporter does not know: written out as a sum over differences."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

_cdist: Any = torch.ops.aten.cdist.default
_PRODUCT = 1  # the form that is a product of matrices, which is taken apart by itself


def with_distances_apart(program: ExportedProgram) -> ExportedProgram:
    """The program with every distance that is no product of matrices written out; the same object without any."""
    calls = program.graph.find_nodes(op="call_function", target=_cdist)
    if all(_is_product(*call.args) for call in calls):
        return program
    apart: ExportedProgram = program.run_decompositions({_cdist: _written_out})
    return apart


def _is_product(x1: Any, x2: Any, p: float = 2.0, mode: int | None = None) -> bool:
    return p == 2 and mode == _PRODUCT


def _written_out(x1: Tensor, x2: Tensor, p: float = 2.0, mode: int | None = None) -> Any:
    """`y[..., i, j]`, the norm of `x1[..., i, :] - x2[..., j, :]`."""
    if _is_product(x1, x2, p, mode):
        return NotImplemented
    apart = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs()
    if p == 0:
        return (apart != 0).to(apart.dtype).sum(-1)
    if math.isinf(p):
        return apart.amax(-1)
    if p == 1:
        return apart.sum(-1)
    return apart.square().sum(-1).sqrt() if p == 2 else apart.pow(p).sum(-1).pow(1 / p)
