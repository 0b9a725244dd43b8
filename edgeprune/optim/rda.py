"""RDA: regularised dual averaging from the initial weights, and iRDA, which goes on with the pattern that it found.

Xiao: Dual Averaging Methods for Regularized Stochastic Learning and Online Optimization, JMLR 11, 2010.
He, Jia, Xu, Zhang and Zhao: Make l1 Regularization Effective in Training Sparse CNN, COAP 77, 2020 (arXiv 1807.04222).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeprune.errors import InputError
from edgeprune.optim.base import Family, Job, Params
from edgeprune.optim.checks import NOT_NEGATIVE, POSITIVE, check_range
from edgeprune.optim.groupers import Element, Grouper, grouper
from edgeprune.optim.penalised import PenalisedOptimizer, shrink

CONVEX = ("group-lasso", "l1")
_SHARED = ("lr", "lr_0", "lam", "penalty", "head_start", "restarts", "steps")


class RDA(PenalisedOptimizer):
    """Every weight is what the mean of all its gradients says, behind a soft threshold that does not wear off.

    Xiao's method with l1 and beta_t = gamma sqrt(t) (2010, algorithm 1) is, for the mean G of t gradients::

        w = -sqrt(t) / gamma shrink(G, lam)                  shrink(G, lam) = sign(G) max(|G| - lam, 0)

    Here, for each parameter w from w_0, with h = head_start, lr_0 the lr at construction and gamma = 1 / lr_0::

        init  A = h    G = -gamma / sqrt(h) w_0
        a = lr / lr_0    A = A + a    G = G + a / A (grad + weight_decay w - G)
        w = -sqrt(A) / gamma shrink(G, (1 - h / A) lam)

    - It starts at the initial weights, not at zero: w_0 is taken for what h steps without a penalty have led to, so
      that the formula gives w_0 before the first gradient. From there w_0 fades as 1 / sqrt(A).
    - A gradient, and with it the penalty, counts for as much as lr is of lr_0, so that the mean comes to rest as a
      schedule takes lr to zero. Where lr stays, w_0 is zero and h next to nothing, this is Xiao's method.
    - What is not penalised (biases, normalisation) does not fade: w = w_0 - sqrt(A) / gamma G with G from 0, which is
      the method with |w - w_0|^2 in place of |w|^2.

    The 2020 paper's abstract says that convolutional networks need "proper initialization and adaptivity"; its full
    text was not at hand, so that how it does both may differ from what is done here.

    With `restarts` it is iRDA, iterative RDA (OpenReview HJMXus0ct7, of which the abstract was at hand): `steps` fall
    into `restarts` + 1 rounds of equal length. When a round ends, what is zero stays zero, and the method starts anew
    from the weights that are left; the last round has no penalty, so that they lose the bias of those before (this too
    is edgeprune's).

    Args:
        params: as torch.optim takes them; named ones for groupers that need names.
        lr: 1 / gamma, above 0 (0 at the end of a schedule). Step t is lr / sqrt(head_start + t) long.
        lam: strength of the penalty, above 0, in units of the mean gradient.
        weight_decay: added to the gradient of all parameters.
        penalty: "l1" or "group-lasso", which is weighted with the square root of a group's size; None for what fits the
            structure.
        structure: "element", "kernel", "channel", "input-column" or a grouper. Parameters in no group are not
            penalised.
        head_start: as how many steps the initial weights count, above 0; the more, the slower they fade.
        restarts: how often it starts anew, at least 0.
        steps: of the whole training; needed where there are restarts.

    Raises:
        InputError: an option out of range, parameters that are not floating point, l1 with groups of several weights,
            the log penalty, which is not convex, or more restarts than steps.
    """

    ranges = {
        "lr": NOT_NEGATIVE,
        "lam": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "head_start": POSITIVE,
        "restarts": NOT_NEGATIVE,
        "steps": POSITIVE,
    }
    optional = ("steps",)
    shaped = ("mean", "start", "kept")

    def __init__(  # noqa: PLR0913 - the options of the method
        self,
        params: Params,
        lr: float = 40.0,
        lam: float = 1e-4,
        weight_decay: float = 0.0,
        penalty: str | None = None,
        structure: str | Grouper = "element",
        head_start: float = 6400.0,
        restarts: int = 0,
        steps: int | None = None,
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "lam": lam, "weight_decay": weight_decay, "penalty": penalty}
        options |= {"structure": structure, "head_start": head_start, "restarts": restarts, "steps": steps}
        super().__init__(params, {**options, "eps": 1.0})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_range("lr", group["lr"], POSITIVE)
        if group["penalty"] is None:
            group["penalty"] = "l1" if isinstance(grouper(group["structure"]), Element) else "group-lasso"
        if group["penalty"] not in CONVEX:
            raise InputError(f"penalty: expected {' or '.join(CONVEX)} with rda, got {group['penalty']!r}")
        super()._check_group(group)
        round_starts(group["steps"], group["restarts"])
        group["lr_0"] = float(group["lr"])

    def _update(self, jobs: list[list[Job]]) -> None:
        for family in self._families((job for own in jobs for job in own), _SHARED):
            for job in family.jobs:
                penalised = family.groups is not None
                if _starts_round(job):
                    _start(job, penalised)
                _average(job)
            _solve(family)
            for job in family.jobs:
                job.write_back()


def round_starts(steps: int | None, restarts: int) -> tuple[int, ...]:
    """The steps, counted from 0, at which the rounds of a training start: (0, 5) of 10 with one restart.

    Raises:
        InputError: more restarts than can be made.
    """
    if not restarts:
        return (0,)
    if restarts != int(restarts):
        raise InputError(f"restarts: expected a whole number, got {restarts}")
    if steps is None or steps <= restarts:
        raise InputError(f"restarts: expected at most one fewer than the training has steps, {steps}, got {restarts}")
    return tuple(number * steps // (int(restarts) + 1) for number in range(int(restarts) + 1))


def _starts_round(job: Job) -> bool:
    done, restarts = job.state.get("step", 0), job.options["restarts"]
    return done == 0 or (restarts > 0 and done in round_starts(job.options["steps"], restarts))


def _start(job: Job, penalised: bool) -> None:
    """The mean gradient of which the formula gives the weights as they are."""
    state = job.state
    if state.get("step", 0) and penalised:
        state["kept"] = job.work != 0
    state["total"] = float(job.options["head_start"])
    if penalised:
        torch.div(job.work, -_scale(job), out=job.tensor("mean"))
    else:
        job.tensor("mean").zero_()
        job.tensor("start").copy_(job.work)


def _scale(job: Job) -> float:
    """sqrt(A) / gamma."""
    return float(job.options["lr_0"]) * math.sqrt(job.state["total"])


def _average(job: Job) -> None:
    """A and G."""
    state, options, mean = job.state, job.options, job.tensor("mean")
    a, grad = float(options["lr"]) / options["lr_0"], job.grad
    state.update(step=state.get("step", 0) + 1, total=state["total"] + a)
    if options["weight_decay"]:
        grad = grad.add(job.work, alpha=options["weight_decay"])
    if "kept" in state:
        grad = grad * state["kept"]
    mean.lerp_(grad, a / state["total"])


def _solve(family: Family) -> None:
    """The weights that the mean gradients give."""
    if family.groups is None:
        job = family.jobs[0]
        torch.sub(job.tensor("start"), job.tensor("mean"), alpha=_scale(job), out=job.work)
        return
    shrunk = [job.tensor("mean").clone() for job in family.jobs]
    shrink(family, shrunk, [_penalised_share(job) for job in family.jobs])
    for job, own in zip(family.jobs, shrunk, strict=True):
        torch.mul(own, -_scale(job), out=job.work)


def _penalised_share(job: Job) -> float:
    """How much of the mean is of steps with a penalty; none in the last of several rounds, where zeros are kept."""
    options, state = job.options, job.state
    if options["restarts"] and state["step"] > round_starts(options["steps"], options["restarts"])[-1]:
        return 0.0
    return 1 - float(options["head_start"]) / float(state["total"])
