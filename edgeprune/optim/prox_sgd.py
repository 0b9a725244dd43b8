"""Proximal stochastic gradient descent with momentum."""

from __future__ import annotations

from edgeprune.optim.base import Job, Params
from edgeprune.optim.checks import BELOW_ONE, NOT_NEGATIVE, POSITIVE
from edgeprune.optim.groupers import Grouper
from edgeprune.optim.kernels import Descent, alike, descend
from edgeprune.optim.penalised import PenalisedOptimizer, shrink


class ProxSGD(PenalisedOptimizer):
    """Minimises loss + lam * penalty: `torch.optim.SGD` with momentum, then the penalty's prox map.

    For each parameter p::

        v = momentum v + grad + weight_decay p
        p = prox of lr / (1 - momentum) lam penalty, at p - lr v

    Momentum sums some 1 / (1 - momentum) gradients, so the prox map takes as long a step; where it stands still, p is a
    stationary point of loss + lam penalty whatever the momentum (Parikh and Boyd, Proximal Algorithms, 2014, for
    momentum 0). With ever noisy gradients its zeros come and go; RMDA and XRDA average that noise out.

    Args:
        params: as torch.optim takes them; named ones for groupers that need names.
        lr: step size, above 0 (0 at the end of a schedule).
        momentum: from 0 to below 1.
        weight_decay: added to the gradient of all parameters.
        lam: strength of the penalty, above 0.
        penalty: "group-lasso", "l1" or "log" (`lam log(1 + norm / eps)`, which hardly shrinks large groups); each is
            weighted with the square root of the group's size.
        structure: "element", "kernel", "channel", "input-column" or a grouper; None for "channel" with the group lasso
            and "element" with the others. Parameters in no group are not penalised.
        eps: scale of the log penalty, above 0, in units of the norms.

    Raises:
        InputError: an option out of range, parameters that are not floating point, l1 with groups of several weights.
    """

    ranges = {
        "lr": NOT_NEGATIVE,
        "momentum": BELOW_ONE,
        "weight_decay": NOT_NEGATIVE,
        "lam": POSITIVE,
        "eps": POSITIVE,
    }
    shaped = ("velocity",)

    def __init__(  # noqa: PLR0913 - the options of the method
        self,
        params: Params,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lam: float = 1e-4,
        penalty: str = "group-lasso",
        structure: str | Grouper | None = None,
        eps: float = 0.01,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "lam": lam, "penalty": penalty}
        super().__init__(params, {**options, "structure": structure, "eps": eps})

    def _update(self, jobs: list[list[Job]]) -> None:
        every = [job for own in jobs for job in own]
        families = self._families(every, ("lr", "momentum", "lam", "penalty", "eps"))
        for group, own in zip(self.param_groups, jobs, strict=True):
            descent = Descent(float(group["lr"]), group["momentum"], 0.0, group["weight_decay"])
            for same in alike(own):
                descend(same, descent)
        for family in families:
            lr, momentum = float(family.options["lr"]), family.options["momentum"]
            shrink(family, [job.work for job in family.jobs], [lr / (1 - momentum)] * len(family.jobs))
        for job in every:
            job.write_back()
