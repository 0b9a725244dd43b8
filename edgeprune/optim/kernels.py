"""Operations on many tensors at once, or on one in pieces that fit a CPU's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.optim.base import Job

BLOCK = 2**18  # elements; six float32 tensors of that size are 6 MiB


@dataclass(frozen=True, slots=True)
class Descent:
    """v = momentum v + (1 - dampening) (grad + weight_decay p), then p = p - lr v."""

    lr: float
    momentum: float
    dampening: float
    weight_decay: float


def descend(jobs: list[Job], descent: Descent) -> None:
    """The step of whole parameters, which must be alike in device and type; v is their state `velocity`."""
    descend_lists(
        [job.work for job in jobs], [job.grad for job in jobs], [job.tensor("velocity") for job in jobs], descent
    )


def descend_lists(p: list[Tensor], g: list[Tensor], v: list[Tensor], descent: Descent) -> None:
    """In one pass: the kernel behind `torch.optim.SGD(fused=True)`."""
    torch._fused_sgd_(
        p,
        g,
        v if descent.momentum else [],
        weight_decay=descent.weight_decay,
        momentum=descent.momentum,
        lr=descent.lr,
        dampening=descent.dampening,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def alike(jobs: list[Job]) -> list[list[Job]]:
    """By device and type, as the multi-tensor kernels need them."""
    found: dict[tuple[torch.device, torch.dtype], list[Job]] = {}
    for job in jobs:
        found.setdefault((job.work.device, job.work.dtype), []).append(job)
    return list(found.values())


def blocks(tensor: Tensor) -> list[Tensor]:
    """The elements of a dense tensor in the order that they lie in memory, `(up to BLOCK,)` each."""
    return list(tensor.as_strided((tensor.numel(),), (1,)).split(BLOCK))
