"""The arithmetic of an xRDA step on single weights.

A step reads and writes far more memory than it computes, so what counts is how often a weight comes from memory. On a
CPU each tensor goes through in blocks that stay in the cache from one operation to the next; elsewhere each operation
goes through all tensors at once (`torch._foreach_*`). Momentum, weight decay and gradient step are one pass of the
kernel behind `torch.optim.SGD(fused=True)`. In place of the dual iterate z the state holds the residual k = z - p, what
the last threshold took away. From z = a z + (1 - a) p - s v follows z = (p - s v) + a k: that kernel's step and one
addition. The threshold gives k = min(max(z, -limit), limit) and p = z - k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.optim.base import Job
from edgeprune.optim.kernels import BLOCK, Descent, alike, blocks, descend, descend_lists

# A history below this weighs nothing beside one of a live tensor, and if a tensor has no larger one, all its weights
# have been zero for hundreds of steps. Flushing keeps the processor off its slow path for subnormal numbers.
FLOOR = {torch.float32: 1e-20, torch.float64: 1e-100}
_FLUSH_AFTER = 30.0  # time scales; a history at the floor decays by e^-30 and is still a normal number
_NEGLIGIBLE = 5e-16  # added to a threshold


_Block = tuple[Tensor, ...]  # weights, gradient, velocity, residual, threshold


@dataclass(frozen=True, slots=True)
class Pull:
    """The numbers of a step of xRDA, with step size s and averaging a."""

    descent: Descent  # lr = s; momentum and dampening e^(-s/tau)
    a: float
    history_gain: float  # 1 - e^(-s/tau_b)
    gain: float  # s lam M: what is added to the threshold of a weight whose history is 0
    max_factor: float
    aging: float  # s / tau_b


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
    limit_of = {id(job): limit for job, limit in zip(jobs, limits, strict=True)}
    for own in alike(jobs):
        scratch, room = _scratch(own), own[0].work.new_empty(max(job.work.numel() for job in own))
        for job in own:
            full = room.as_strided(job.work.shape, job.work.stride()).copy_(limit_of[id(job)])
            tensors = (job.work, job.grad, job.tensor("velocity"), job.tensor("residual"), full)
            for block in zip(*(blocks(tensor) for tensor in tensors), strict=True):
                _move(block, scratch[: block[0].numel()], pull)


def blocked_steps(jobs: list[Job], pull: Pull) -> None:
    """The steps of single tensors in element mode, each block by block."""
    for own in alike(jobs):
        scratch, peaks = _scratch(own), _scratch(own)
        for job in own:
            p, g, r = blocks(job.work), blocks(job.grad), blocks(job.tensor("history"))
            v, k, limit = (blocks(job.tensor(key)) for key in ("velocity", "residual", "threshold"))
            peak = _age(p, r, (scratch, peaks), _is_due(job, pull), pull)
            slope = (pull.max_factor - 1) / peak if peak > FLOOR[job.work.dtype] else 0.0
            for i in reversed(range(len(p))):  # the last blocks are still in the cache
                t = scratch[: p[i].numel()]
                _tighten(limit[i], r[i], t, slope, pull)
                _move((p[i], g[i], v[i], k[i], limit[i]), t, pull)


def _is_due(job: Job, pull: Pull) -> bool:
    """Whether the histories have decayed so far since the last flush that it is time for another."""
    age = job.state.get("age", 0.0) + pull.aging
    job.state["age"] = 0.0 if age > _FLUSH_AFTER else age
    return bool(age > _FLUSH_AFTER)


def _age(p: list[Tensor], r: list[Tensor], scratch: tuple[Tensor, Tensor], flush: bool, pull: Pull) -> float:
    """r = (1 - gain) r + gain |p|; its maximum."""
    absolute, peaks = scratch
    peak = 0.0
    for i, (weights, history) in enumerate(zip(p, r, strict=True)):
        history.lerp_(torch.abs(weights, out=absolute[: weights.numel()]), pull.history_gain)
        if flush:
            flush_(history)
        if i == len(p) - 1:
            peak = float(history.max())
        elif i == 0:
            peaks.copy_(history)
        else:
            torch.maximum(peaks, history, out=peaks)
    return max(peak, float(peaks.max())) if len(p) > 1 else peak


def _tighten(limit: Tensor, r: Tensor, t: Tensor, slope: float, pull: Pull) -> None:
    """limit = a limit + s lam w, where s lam w = 1 / (1 / gain + slope / gain r)."""
    if pull.gain < _NEGLIGIBLE:
        limit.mul_(pull.a)
        return
    torch.add(t.new_tensor(1 / pull.gain), r, alpha=slope / pull.gain, out=t)
    torch.add(t.reciprocal_(), limit, alpha=pull.a, out=limit)


def _move(block: _Block, t: Tensor, pull: Pull) -> None:
    """The gradient step, the averaging and the threshold of one block; `t` is overwritten."""
    p, g, v, k, limit = block
    descend_lists([p], [g], [v], pull.descent)
    p.add_(k, alpha=pull.a)
    torch.clamp(p, torch.neg(limit, out=t), limit, out=k)
    p.sub_(k)


def foreach_step(jobs: list[Job], pull: Pull) -> None:
    """The step of many tensors in element mode, operation by operation and without waiting for the device."""
    for own in alike(jobs):
        p, g = [job.work for job in own], [job.grad for job in own]
        v, k, r, limit = ([job.tensor(key) for job in own] for key in ("velocity", "residual", "history", "threshold"))
        torch._foreach_lerp_(r, torch._foreach_abs(p), pull.history_gain)
        for job, history in zip(own, r, strict=True):
            if _is_due(job, pull):
                flush_(history)
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


def _scratch(jobs: list[Job]) -> Tensor:
    return jobs[0].work.new_empty(min(BLOCK, max(job.work.numel() for job in jobs)))
