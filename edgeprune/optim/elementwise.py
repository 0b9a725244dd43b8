"""The arithmetic of an xRDA step on single weights, in operations that run on every device.

Each goes through all tensors at once (`torch._foreach_*`); momentum, weight decay and gradient step are one pass of the
kernel behind `torch.optim.SGD(fused=True)`. In place of the dual iterate z the state holds the residual k = z - p, what
the last threshold took away. From z = a z + (1 - a) p - s v follows z = (p - s v) + a k: that kernel's step and one
addition. The threshold gives k = min(max(z, -limit), limit) and p = z - k. `compiled` does the same on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.optim.base import Job
from edgeprune.optim.kernels import Descent, alike, descend, descend_lists

# A history below this weighs nothing beside one of a live tensor, and if a tensor has no larger one, all its weights
# have been zero for hundreds of steps. Flushing keeps the processor off its slow path for subnormal numbers.
FLOOR = {torch.float32: 1e-20, torch.float64: 1e-100}


@dataclass(frozen=True, slots=True)
class Pull:
    """The numbers of a step of xRDA, with step size s and averaging a."""

    descent: Descent  # lr = s; momentum and dampening e^(-s/tau)
    a: float
    history_gain: float  # 1 - e^(-s/tau_b)
    gain: float  # s lam M: what is added to the threshold of a weight whose history is 0
    max_factor: float


def flush_(history: Tensor) -> Tensor:
    """Forget histories that no longer count."""
    return F.threshold(history, FLOOR[history.dtype], 0.0, inplace=True)


def gradient_step(jobs: list[Job], pull: Pull) -> None:
    """v = keep v + (1 - keep) (grad + wd p), p = p - s v: the whole step of what is never thresholded."""
    for own in alike(jobs):
        descend(own, pull.descent)
    for job in jobs:
        if job.is_rounded:
            residual = job.tensor("residual")
            job.work.add_(residual, alpha=pull.a)
            residual.zero_()


def store(job: Job) -> None:
    """Write the weights back; what rounding them took away is in the residual, so that small steps are not lost."""
    job.write_back()
    if job.is_rounded:
        job.tensor("residual").add_(job.work).sub_(job.param)


def limited_steps(jobs: list[Job], limits: list[Tensor], pull: Pull) -> None:
    """The steps of tensors with given thresholds, each of which broadcasts to its weights."""
    for own in alike(jobs):
        descend(own, pull.descent)
    for job, limit in zip(jobs, limits, strict=True):
        residual = job.tensor("residual")
        job.work.add_(residual, alpha=pull.a)
        torch.clamp(job.work, -limit, limit, out=residual)
        job.work.sub_(residual)


def element_steps(jobs: list[Job], pull: Pull) -> None:
    """The steps of tensors in element mode, operation by operation and without waiting for the device."""
    for own in alike(jobs):
        p, g = [job.work for job in own], [job.grad for job in own]
        v, k, r, limit = ([job.tensor(key) for job in own] for key in ("velocity", "residual", "history", "threshold"))
        torch._foreach_lerp_(r, torch._foreach_abs(p), pull.history_gain)
        peaks = torch.stack(torch._foreach_max(r))
        slopes = torch.where(peaks > FLOOR[peaks.dtype], (pull.max_factor - 1) / peaks, 0.0)
        w = torch._foreach_mul(r, list(slopes.unbind()))
        torch._foreach_add_(w, 1.0)
        torch._foreach_reciprocal_(w)
        torch._foreach_mul_(limit, pull.a)
        torch._foreach_add_(limit, w, alpha=pull.gain)
        descend_lists(p, g, v, pull.descent)
        torch._foreach_add_(p, k, alpha=pull.a)
        torch._foreach_copy_(k, p)
        torch._foreach_clamp_max_(k, limit)
        torch._foreach_clamp_min_(k, torch._foreach_neg(limit))
        torch._foreach_sub_(p, k)
