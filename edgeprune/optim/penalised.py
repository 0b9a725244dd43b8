"""What the optimizers share that minimise the loss plus `lam` times a penalty of each group's norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.optim.base import Family, SparseOptimizer
from edgeprune.optim.groupers import Element, grouper
from edgeprune.optim.kernels import blocks
from edgeprune.optim.prox import prox_of


class PenalisedOptimizer(SparseOptimizer):
    """Options `penalty`, `structure` and `eps`, and the prox map of a family of groups.

    The penalty of a group of size n is `lam sqrt(n) f(norm)` with the l2 norm of its weights (Yuan and Lin 2006), so
    that one `lam` serves groups of all sizes.
    """

    def _check_group(self, group: dict[str, Any]) -> None:
        prox = prox_of(group["penalty"], group["eps"])
        if group["structure"] is None:
            group["structure"] = "channel" if prox.name == "group-lasso" else "element"
        group["structure"] = grouper(group["structure"])
        if prox.name == "l1" and not isinstance(group["structure"], Element):
            got = group["structure"].name
            raise InputError(
                f"penalty l1: expected structure element, got {got}; group-lasso is the one for whole groups"
            )
        super()._check_group(group)


def shrink(family: Family, weights: list[Tensor], steps: list[float]) -> None:
    """The prox map of the penalty, in place.

    Args:
        weights: of the family's jobs, or what is to become of them.
        steps: the step length for each of them; a group that runs over several takes that of its owner.
    """
    if family.groups is None:
        return
    options = family.options
    prox, lam = prox_of(options["penalty"], options["eps"]), options["lam"]
    if isinstance(options["structure"], Element):
        for block in blocks(weights[0]) if steps[0] * lam > 0 else ():
            block.mul_(prox.factor(block.abs(), steps[0] * lam))
        return
    factors = []
    norms = family.groups.norms(weights, 2)
    for norm, size, owner in zip(norms, family.groups.sizes, family.groups.owners, strict=True):
        root = size.sqrt().to(norm.dtype) if isinstance(size, Tensor) else math.sqrt(size)
        amount = root * (steps[owner] * lam)
        factors.append(prox.factor(norm, amount) if steps[owner] * lam > 0 else torch.ones_like(norm))
    for weight, factor in zip(weights, family.groups.spread_product(factors), strict=True):
        if factor is not None:
            weight.mul_(factor)
