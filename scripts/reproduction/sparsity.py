"""What the older ways to zeros need: an l1 subgradient, one threshold over all layers, zeros that stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def weights(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that zeros are counted in: those of two dims or more."""
    return [param for param in module.parameters() if param.dim() > 1]


def zero_share(module: nn.Module) -> float:
    """The share of the weights that is exactly zero."""
    every = weights(module)
    return sum(int((param == 0).sum()) for param in every) / sum(param.numel() for param in every)


@torch.no_grad()
def drop_smallest(module: nn.Module, share: float) -> None:
    """Set the smallest weights of all layers together to zero, so that at least this share of them is."""
    every = weights(module)
    sizes = torch.cat([param.abs().flatten() for param in every])
    n_out = min(math.ceil(share * len(sizes)), len(sizes))
    kept = torch.ones_like(sizes)
    kept[sizes.argsort(stable=True)[:n_out]] = 0
    for param, part in zip(every, kept.split([param.numel() for param in every]), strict=True):
        param.mul_(part.view(param.shape))


@contextmanager
def l1_gradients(module: nn.Module, strength: float) -> Iterator[None]:
    """While it is entered, the weights' gradients are those of loss + strength * (sum of |w|): a subgradient at 0."""
    with _gradients(module, lambda param: lambda grad: grad + strength * param.detach().sign()):
        yield


@contextmanager
def zeros_held(module: nn.Module) -> Iterator[None]:
    """While it is entered, weights that are zero have no gradient: SGD with coupled weight decay leaves them zero."""

    def masked(param: nn.Parameter) -> Callable[[Tensor], Tensor]:
        own = (param.detach() != 0).to(param.dtype)
        return lambda grad: grad * own.to(grad.device)

    with _gradients(module, masked):
        yield


@contextmanager
def _gradients(module: nn.Module, changed: Callable[[nn.Parameter], Callable[[Tensor], Tensor]]) -> Iterator[None]:
    handles = [param.register_hook(changed(param)) for param in weights(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
