"""RMDA: regularised modernised dual averaging, for structures that stay once they are found.

Huang and Lee: Training Structured Neural Networks Through Manifold Identification and Variance Reduction, ICLR 2022.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeprune.optim.base import Job, Params
from edgeprune.optim.checks import NOT_NEGATIVE, POSITIVE, SHARE, SHARE_OR_ZERO
from edgeprune.optim.groupers import Grouper
from edgeprune.optim.penalised import PenalisedOptimizer, shrink


class RMDA(PenalisedOptimizer):
    """Dual averaging with a penalty, momentum and restarts: the noise of the gradients averages out, the zeros stay.

    For each parameter W from W_0, at step t = 1, 2, ... (the paper's Algorithm 1)::

        s_t = lr sqrt(t)     alpha_t = alpha_(t-1) + s_t     beta_t = sqrt(t)
        V_t = V_(t-1) + s_t (grad + weight_decay W_(t-1))
        W~_t = prox of alpha_t / beta_t lam penalty, at W_0 - V_t / beta_t
        W_t = (1 - c_t) W_(t-1) + c_t W~_t

    Only W~ has exact zeros, so W has them once c_t is 1: `momentum` is c at first, and c_t^2 grows linearly to 1 over
    `release` steps, as the authors let c grow in their last stage. When lr drops by steps the method starts anew from
    where it is (W_0 = W, V = 0, alpha = 0, t = 0), as the paper does; a smooth schedule does not restart it.

    Args:
        params: as torch.optim takes them; named ones for groupers that need names.
        lr: step size, above 0 (0 at the end of a schedule). Without a factor 1 / (1 - momentum) in it: 0.5 moves as far
            as SGD with 0.05 and momentum 0.9.
        momentum: c, above 0 and at most 1; 1 is without momentum, the smaller the more.
        weight_decay: added to the gradient of all parameters.
        lam: strength of the penalty, above 0.
        penalty: "group-lasso", "l1" or "log"; each is weighted with the square root of the group's size. The theory
            holds for the convex two and for groups that do not overlap (`ChannelGroups(graph, outgoing=False)`).
        structure: "element", "kernel", "channel", "input-column" or a grouper; None for "channel" with the group lasso
            and "element" with the others. Parameters in no group are not penalised.
        eps: scale of the log penalty, above 0, in units of the norms.
        release: steps since the last start after which c is 1; None keeps c as it is.
        restart: start anew where lr falls below this share of what it was a step before; 0 for never.

    Raises:
        InputError: an option out of range, parameters that are not floating point, l1 with groups of several weights.
    """

    ranges = {
        "lr": NOT_NEGATIVE,
        "momentum": SHARE,
        "weight_decay": NOT_NEGATIVE,
        "lam": POSITIVE,
        "eps": POSITIVE,
        "release": POSITIVE,
        "restart": SHARE_OR_ZERO,
    }
    optional = ("release",)
    shaped = ("gradients", "start")

    def __init__(  # noqa: PLR0913 - the options of the method
        self,
        params: Params,
        lr: float = 0.1,
        momentum: float = 0.1,
        weight_decay: float = 0.0,
        lam: float = 1e-4,
        penalty: str = "group-lasso",
        structure: str | Grouper | None = None,
        eps: float = 0.01,
        release: int | None = None,
        restart: float = 0.5,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lam": lam, "penalty": penalty}
        options |= {"structure": structure, "eps": eps, "release": release, "restart": restart}
        super().__init__(params, options)

    def _update(self, jobs: list[list[Job]]) -> None:
        every = [job for own in jobs for job in own]
        families = self._families(every, ("lr", "lam", "penalty", "eps"))
        for job in every:
            _gather(job)
        for family in families:
            proposals = [_proposal(job) for job in family.jobs]
            steps = [job.state["alpha"] / math.sqrt(job.state["step"]) for job in family.jobs]
            shrink(family, proposals, steps)
            for job, proposal in zip(family.jobs, proposals, strict=True):
                _approach(job, proposal)
                job.write_back()


def _gather(job: Job) -> None:
    """t, alpha and V, after a restart where it is due."""
    state, options, lr = job.state, job.options, float(job.options["lr"])
    gradients, start = job.tensor("gradients"), job.tensor("start", job.work)
    if lr < options["restart"] * state.get("lr", 0.0):
        gradients.zero_()
        start.copy_(job.work)
        state.update(step=0, alpha=0.0)
    s = lr * math.sqrt(state.get("step", 0) + 1)
    state.update(step=state.get("step", 0) + 1, alpha=state.get("alpha", 0.0) + s, lr=lr)
    gradients.add_(job.grad, alpha=s)
    if options["weight_decay"]:
        gradients.add_(job.work, alpha=s * options["weight_decay"])


def _proposal(job: Job) -> Tensor:
    """W_0 - V / beta."""
    return torch.sub(job.tensor("start"), job.tensor("gradients"), alpha=1 / math.sqrt(job.state["step"]))


def _approach(job: Job, proposal: Tensor) -> None:
    """W = (1 - c) W + c W~, exactly W~ where c is 1."""
    c = _momentum(job.options, job.state["step"])
    if c == 1.0:
        job.work.copy_(proposal)
    else:
        job.work.lerp_(proposal, c)


def _momentum(options: dict[str, Any], step: int) -> float:
    c, release = options["momentum"], options["release"]
    if release is None:
        return c
    return math.sqrt(min(1.0, c * c + (1 - c * c) * step / release))
