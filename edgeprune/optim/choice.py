"""Optimizers by name, with defaults that train."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph.precision import HALF
from edgeprune.optim.float32 import AdamWInFloat32, SGDInFloat32
from edgeprune.optim.prox_sgd import ProxSGD
from edgeprune.optim.rda import RDA
from edgeprune.optim.rmda import RMDA
from edgeprune.optim.xrda import XRDA

_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Choice:
    """An optimizer as `make` offers it: its peak learning rate and weight decay where they are left open.

    `sparse` tells that it sets weights to exact zeros; such a one decays all parameters, the others weights only.
    """

    build: Callable[..., torch.optim.Optimizer]
    lr: float
    weight_decay: float
    sparse: bool
    fixed: Mapping[str, Any]


OPTIMIZERS: Mapping[str, Choice] = {
    "adamw": Choice(torch.optim.AdamW, 2e-3, 5e-2, sparse=False, fixed={}),
    "sgd": Choice(torch.optim.SGD, 5e-2, 5e-4, sparse=False, fixed={"momentum": _MOMENTUM, "nesterov": True}),
    "xrda": Choice(XRDA, 1.0, 5e-4, sparse=True, fixed={}),
    "rda": Choice(RDA, 40.0, 0.0, sparse=True, fixed={}),
    "rmda": Choice(RMDA, 0.5, 5e-4, sparse=True, fixed={}),
    "prox-sgd": Choice(ProxSGD, 5e-2, 5e-4, sparse=True, fixed={"momentum": _MOMENTUM}),
}

_IN_FLOAT32: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"adamw": AdamWInFloat32, "sgd": SGDInFloat32}


def make(
    name: str,
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    steps: int | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that are trained.

    With sgd and adamw weights decay; biases and the 1-D parameters of normalisation do not. The sparse ones add weight
    decay to the gradient of all parameters, as their papers do.

    Args:
        name: one of `OPTIMIZERS`: xrda, rda, rmda, prox-sgd, sgd, adamw.
        named_parameters: `module.named_parameters()`; those that need no gradient are left out.
        lr: peak learning rate; None for the optimizer's own default.
        weight_decay: None for the optimizer's own default.
        steps: of the whole run, where that is known. RMDA has exact zeros only without momentum, so it then gives its
            momentum up over the first quarter, and again after each restart, unless `release` says otherwise. RDA needs
            them for its `restarts`.
        options: what else the optimizer's constructor takes, e.g. `lam` and `structure`.

    Raises:
        InputError: an unknown name or option, a value out of range, or nothing to train.

    Example:
        >>> optimizer = make("xrda", module.named_parameters(), lam=1e-6, structure="channel")
    """
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    choice = OPTIMIZERS[name]
    known = set(inspect.signature(choice.build).parameters) - {"params", "lr", "weight_decay"}
    for option in options:
        if option not in known:
            raise InputError(f"optimizer {name}: expected options among {', '.join(sorted(known))}, got {option}")
    trained = [(key, param) for key, param in named_parameters if param.requires_grad]
    if not trained:
        raise InputError("expected parameters to train, got none")
    decay = choice.weight_decay if weight_decay is None else weight_decay
    lr = choice.lr if lr is None else lr
    if name == "rmda" and steps is not None:
        options.setdefault("release", max(1, steps // 4))
    if name == "rda":
        options.setdefault("steps", steps)
    if choice.sparse:
        return choice.build(trained, lr=lr, weight_decay=decay, **{**choice.fixed, **options})
    build = _IN_FLOAT32[name] if any(param.dtype in HALF for _, param in trained) else choice.build
    return build(_by_decay(trained, decay), lr=lr, **{**choice.fixed, **options})


def _by_decay(named: list[tuple[str, Tensor]], decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [pair for pair in named if pair[1].dim() > 1], "weight_decay": decay},
        {"params": [pair for pair in named if pair[1].dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
