"""xRDA: adaptively weighted l1 regularisation by averaged proximal steps.

Siegel, Chen, Zhang, Xu: Training Sparse Neural Networks using Compressed Sensing (arXiv 2008.09661).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.optim import elementwise
from edgeprune.optim.base import Family, Job, Params, SparseOptimizer, group_state
from edgeprune.optim.checks import NOT_NEGATIVE, POSITIVE, SHARE_OR_ZERO, check_range
from edgeprune.optim.elementwise import Pull, flush_, store
from edgeprune.optim.groupers import Element, Grouper, TensorGroups, grouper
from edgeprune.optim.kernels import Descent

if TYPE_CHECKING:
    from edgeprune.optim.compiled import Rows

Averaging = float | Callable[[float], float] | None
STRUCTURES = ("element", "kernel", "channel")
_ROUNDING = 1e-6  # how far above lr_0, relatively, a scheduler's rounding may take lr


class XRDA(SparseOptimizer):
    r"""Training to exact zeros with adaptive weights: extended regularised dual averaging.

    For each parameter p, with step size s and averaging a (DESIGN.md, Sparse training; the paper's Algorithm 1)::

        init  z = p0   v = r = b = 0
        g = grad + weight_decay p        N = |p|, or its mean over the kernel or output channel
        r = e^(-s/tau_b) r + (1 - e^(-s/tau_b)) N
        w = c M / (1 + (M - 1) r / max(r))       M = max_factor; max over the tensor; c = sqrt(size of a group)
        b = a b + s w        z = a z + (1 - a) p        v = e^(-s/tau) v + (1 - e^(-s/tau)) g        z = z - s v
        p = sign(z) max(|z| - lam b, 0)

    Small weights are pushed to zero up to M times as hard as the largest. a = 0 is proximal SGD with momentum, a = 1
    regularised dual averaging. s is the group's `lr`, and a = 1 - lr / lr_0, where lr_0 is the group's `initial_lr`
    once a scheduler has set it and else the lr at construction: every `torch.optim.lr_scheduler` that goes no higher
    drives both. lr=1 with tau=9.5 steps like SGD with lr=0.1 and momentum 0.9. A warm-up from below lr_0 averages
    while it lasts, as small steps do anywhere.

    Parameters of less than two dims are never thresholded, nor are those in no group of the structure. Those without a
    gradient are left alone. The state of half-precision parameters is float32. State per weight, besides the parameter:
    v (`velocity`), z - p (`residual`), r (`history`) and lam b (`threshold`); the last two one number a group.

    Args:
        params: as torch.optim takes them; named ones for groupers that need names.
        lr: step size s, above 0.
        lam: strength, above 0; published 1e-6 (element, ResNet18) and 1e-8 (channel, VGG19). It may be changed between
            steps: the thresholds gather it as it is.
        tau: time scale of the momentum, in units of s.
        tau_b: time scale of the weights' history; None for `tau`.
        max_factor: M, above 0.
        weight_decay: added to the gradient of all parameters.
        structure: "element", "kernel" or "channel" (dim 0 of every weight; for transposed convolutions give
            `OutputChannel(transposed_weights(module))`), or a grouper. All weights of a group share a threshold. In a
            linear layer a kernel is one weight and a channel one row.
        averaging: None for 1 - lr / lr_0, a fixed number in 0..1, or a function of lr / lr_0 that gives it. A state
            dict does not hold the function.
        foreach: whether to run the whole list of weights through `torch._foreach_*`, or through functions compiled for
            the CPU at the first step; None chooses by where the parameters are.

    Raises:
        InputError: an option out of range, parameters that are not floating point, sparse gradients (at the step), or a
            scheduler that raises lr above lr_0 (at the step).

    Example:
        >>> optimizer = XRDA(model.named_parameters(), lam=1e-6)
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    """

    ranges = {
        "lr": NOT_NEGATIVE,
        "lam": POSITIVE,
        "tau": POSITIVE,
        "tau_b": POSITIVE,
        "max_factor": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
    }
    optional = ("tau_b",)
    shaped = ("velocity", "residual")

    def __init__(  # noqa: PLR0913 - the options of the method, all but the first with the published values
        self,
        params: Params,
        lr: float = 1.0,
        lam: float = 1e-6,
        tau: float = 9.5,
        tau_b: float | None = None,
        max_factor: float = 500.0,
        weight_decay: float = 5e-4,
        structure: str | Grouper = "element",
        averaging: Averaging = None,
        foreach: bool | None = None,
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "lam": lam, "tau": tau, "tau_b": tau_b, "max_factor": max_factor}
        options |= {"weight_decay": weight_decay, "structure": structure, "averaging": averaging, "foreach": foreach}
        super().__init__(params, options)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_range("lr", group["lr"], POSITIVE)
        grouper(group["structure"], STRUCTURES)
        if group["averaging"] is not None and not callable(group["averaging"]):
            check_range("averaging", group["averaging"], SHARE_OR_ZERO)
        super()._check_group(group)
        group["lr_0"] = float(group["lr"])

    def _update(self, jobs: list[list[Job]]) -> None:
        pulls = {id(group): _pull(group) for group in self.param_groups}  # says what is wrong before anything moves
        steps = {id(group): _Steps() for group in self.param_groups}
        every = [job for own in jobs for job in own]
        for job in every:
            if job.work.dim() < 2:
                steps[id(job.options)].free.append(job)
        for family in self._families((job for job in every if job.work.dim() > 1), _SHARED):
            _sort(family, pulls[id(family.options)], steps)
        for group in self.param_groups:
            steps[id(group)].run(pulls[id(group)])
        for job in every:
            store(job)


@dataclass(slots=True)
class _Steps:
    """The parameters of a group, by where their thresholds come from: there are none; they are made with the step, on
    the CPU or elsewhere; or the weight shares them with others, and they are there already.
    """

    free: list[Job] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    elements: list[Job] = field(default_factory=list)
    limited: list[tuple[Job, Tensor]] = field(default_factory=list)

    def run(self, pull: Pull) -> None:
        """Move all of them."""
        elementwise.gradient_step(self.free, pull)
        elementwise.element_steps(self.elements, pull)
        elementwise.limited_steps(*_columns(self.limited, foreach=True), pull)
        if self.rows:
            _for_cpu().row_steps(self.rows, pull)
        jobs, limits = _columns(self.limited, foreach=False)
        if jobs:
            _for_cpu().limited_steps(jobs, limits, pull)


def _columns(limited: list[tuple[Job, Tensor]], foreach: bool) -> tuple[list[Job], list[Tensor]]:
    own = [(job, limit) for job, limit in limited if _foreach(job) is foreach]
    return [job for job, _ in own], [limit for _, limit in own]


def _for_cpu() -> ModuleType:
    """The steps for a CPU. Only who takes one waits for the compiler to be imported."""
    from edgeprune.optim import compiled as module

    return module


def _sort(family: Family, pull: Pull, steps: Mapping[int, _Steps]) -> None:
    """Put the jobs of a family where their step is done; `steps` by the id of the param group."""
    groups, first = family.groups, family.jobs[0]
    own = steps[id(first.options)]
    if groups is None:
        own.free.append(first)
        return
    rows = None
    if isinstance(groups, TensorGroups) and not _foreach(first):
        rows = _for_cpu().rows(first, groups.dims[0])
    if rows is not None:
        own.rows.append(rows)
    elif isinstance(first.options["structure"], Element):
        own.elements.append(first)
    else:
        for job, limit in zip(family.jobs, groups.spread_sum(_thresholds(family, pull)), strict=True):
            mine = steps[id(job.options)]
            if limit is None:
                mine.free.append(job)
            else:
                mine.limited.append((job, limit))


# What a unit that runs over several param groups must find the same in all of them.
_SHARED = ("lr", "lr_0", "lam", "tau_b", "max_factor", "averaging")


def _thresholds(family: Family, pull: Pull) -> list[Tensor]:
    """lam b of every group, shaped as the grouper's norms."""
    assert family.groups is not None
    norms = family.groups.norms([job.work for job in family.jobs], 1)
    limits = group_state(family, "threshold", norms)
    histories = group_state(family, "history", norms)
    for norm, size, limit, history in zip(norms, family.groups.sizes, limits, histories, strict=True):
        flush_(history.lerp_((norm / size).to(norm.dtype), pull.history_gain))
        peak = history.max()
        share = history / torch.where(peak > 0, peak, 1.0)
        c = size.sqrt().to(norm.dtype) if isinstance(size, Tensor) else math.sqrt(size)
        limit.mul_(pull.a).add_(c / (1 + (pull.max_factor - 1) * share), alpha=pull.gain)
    return limits


def _foreach(job: Job) -> bool:
    wanted = job.options["foreach"]
    return job.work.device.type != "cpu" if wanted is None else bool(wanted)


def _pull(group: dict[str, Any]) -> Pull:
    """The numbers of a step, from the options as the scheduler has left them.

    Raises:
        InputError: lr is above lr_0, or the averaging function gave something else than 0..1.
    """
    s, tau_b = float(group["lr"]), group["tau"] if group["tau_b"] is None else group["tau_b"]
    keep = math.exp(-s / group["tau"])
    return Pull(
        descent=Descent(s, momentum=keep, dampening=keep, weight_decay=group["weight_decay"]),
        a=_averaging(group, s),
        history_gain=-math.expm1(-s / tau_b),
        gain=s * group["lam"] * group["max_factor"],
        max_factor=group["max_factor"],
    )


def _averaging(group: dict[str, Any], s: float) -> float:
    wanted, lr_0 = group["averaging"], float(group.get("initial_lr", group["lr_0"]))
    if wanted is not None and not callable(wanted):
        return float(wanted)
    if s > lr_0 * (1 + _ROUNDING):
        raise InputError(
            f"lr: expected at most lr_0 = {lr_0:g}, since xRDA averages with a = 1 - lr / lr_0, got {s:g}; give the "
            f"largest lr to the optimizer and let the scheduler only lower it, or set averaging"
        )
    ratio = min(s / lr_0, 1.0)
    if wanted is None:
        return 1 - ratio
    a = wanted(ratio)
    check_range("averaging", a, SHARE_OR_ZERO)
    return float(a)
