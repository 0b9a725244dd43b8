"""An optimizer goes on with the parameters of a smaller network: its state is cut as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_Kept = Mapping[int, tuple[int, ...]]  # dim -> the indices that are kept of it


@dataclass(frozen=True, slots=True)
class Migrated:
    """What became of an optimizer's parameters, by name.

    `carried` have their state, cut as they were; of `afresh` it does not fit, and begins anew; `dropped` are no more.
    """

    carried: tuple[str, ...]
    afresh: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The parameters before and after a cut by name, and what it kept of each."""

    before: Mapping[str, nn.Parameter]
    after: Mapping[str, nn.Parameter]
    kept: Mapping[str, _Kept]


def migrate(optimizer: Optimizer, parameters: Parameters) -> Migrated:
    """Let an optimizer train the parameters after a cut where it trained those before; it is changed in place.

    Groups, their order and their settings stay, and so do parameters of other networks. What an optimizer keeps of a
    parameter is cut where it has the parameter's shape (momenta, second moments), and taken over where it is one number
    (steps); of a parameter with anything else, as the factors of Adafactor, the state begins afresh.
    """
    names = {id(parameter): name for name, parameter in parameters.before.items()}
    carried: list[str] = []
    afresh: list[str] = []
    dropped: list[str] = []
    for group in optimizer.param_groups:
        remaining: list[Tensor] = []
        for old in group["params"]:
            name = names.get(id(old))
            if name is None:
                remaining.append(old)
                continue
            state = optimizer.state.pop(old, None)
            new = parameters.after.get(name)
            if new is None:
                dropped.append(name)
                continue
            remaining.append(new)
            sliced = None if state is None else _sliced(state, old, new, parameters.kept.get(name, {}))
            if sliced is not None:
                optimizer.state[new] = sliced
                carried.append(name)
            elif state:
                afresh.append(name)
        group["params"] = remaining
    return Migrated(tuple(carried), tuple(afresh), tuple(dropped))


def _sliced(state: Mapping[str, Any], old: Tensor, new: Tensor, kept: _Kept) -> dict[str, Any] | None:
    """The state of one parameter for the new one; None where something in it cannot be cut."""
    found: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape and value.dim():
            part = _kept_part(value, kept)
            if part.shape != new.shape:
                return None
            found[name] = part
        elif isinstance(value, Tensor) and value.numel() != 1:
            return None
        else:
            found[name] = value
    return found


def _kept_part(tensor: Tensor, kept: _Kept) -> Tensor:
    for dim, indices in kept.items():
        tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
    return tensor.clone()
