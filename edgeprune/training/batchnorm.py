"""Batch norm as functions see it, whatever module calls it: over the batch of all processes.

Statistics of each process's own part of a batch would make the weights depend on how many processes there are.
PyTorch's SyncBatchNorm runs on GPUs alone, and would have to take the place of every module that inherits from its
batch norm or calls the function itself. A mode that watches the calls needs none of it, and sees exported graphs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeprune.graph.precision import HALF

# Where a call has the running mean, the running variance, weight, bias, the train flag, momentum and eps.
_MODULES_ORDER = ("x", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_OPERATORS_ORDER = ("x", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn")
_FUNCTIONS: Mapping[Any, Sequence[str]] = {
    F.batch_norm: _MODULES_ORDER,
    torch.batch_norm: _OPERATORS_ORDER,
    torch.ops.aten.batch_norm.default: _OPERATORS_ORDER,
}


@dataclass(frozen=True, slots=True, eq=False)
class BatchNormCall:
    """One call of batch norm: `x` `(batch, n_channels, ...)`, everything else `(n_channels,)`, or None."""

    x: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float
    eps: float


def batch_norm_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BatchNormCall | None:
    """What a call of a PyTorch function asks of batch norm; None for another function."""
    names = _FUNCTIONS.get(function)
    if names is None:
        return None
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
    given |= {**dict(zip(names, args, strict=False)), **kwargs}
    given["x"] = given.pop("input", given.get("x"))
    return BatchNormCall(**{name: given[name] for name in _MODULES_ORDER})


class GlobalBatchNorm(TorchFunctionMode):
    """While it is entered, every batch norm that trains normalises over the batches of all processes.

    Args:
        total: the sum of a tensor over all processes, through which gradients flow.
        n_own: how many of the first samples of this process count; another one stands in where it has none.
        n_all: how many samples all of them have together.
    """

    def __init__(self, total: Callable[[Tensor], Tensor], n_own: int, n_all: int) -> None:
        super().__init__()
        self._total, self._n_own, self._n_all = total, n_own, n_all

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = batch_norm_call(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if call is None or not call.training else self._normalized(call)

    def _normalized(self, call: BatchNormCall) -> Tensor:
        x = call.x.float() if call.x.dtype in HALF else call.x
        dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        count = self._n_all * math.prod(x.shape[2:])
        mean = self._total(x[: self._n_own].sum(dims)) / count
        centred = x - mean.reshape(shape)
        # The squares are summed of what is centred: E[x^2] - E[x]^2 would lose digits.
        var = self._total(centred[: self._n_own].square().sum(dims)) / count
        with torch.no_grad():
            if call.running_mean is not None:
                call.running_mean.lerp_(mean.to(call.running_mean.dtype), call.momentum)
            if call.running_var is not None:
                unbiased = var * (count / max(1, count - 1))
                call.running_var.lerp_(unbiased.to(call.running_var.dtype), call.momentum)
        y = centred * torch.rsqrt(var + call.eps).reshape(shape)
        if call.weight is not None:
            y = y * call.weight.reshape(shape)
        if call.bias is not None:
            y = y + call.bias.reshape(shape)
        return y.to(call.x.dtype)
