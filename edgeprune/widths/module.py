"""A module that is one network at several widths: the narrower ones read the first of the widest one's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.graph.capture import Program
from edgeprune.graph.owninputs import spared
from edgeprune.pruning.plan import PruningPlan
from edgeprune.widths.nested import NestedWidths


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A parameter of a narrower network: the module that holds it, its name there, and what of the widest's it is."""

    owner: nn.Module
    attribute: str
    name: str
    dims: Mapping[int, tuple[int, ...]]


class WidthsModule(nn.Module):
    """Gives a tuple with the outputs of every width, from wide to narrow.

    Its parameters are the widest network's, of which the narrower ones read slices, so that the gradients of all of
    them add up there. Buffers, such as batch norm's running statistics, are each width's own.
    """

    def __init__(self, nested: NestedWidths) -> None:
        super().__init__()
        self.widest = nested.programs[0].own_module()
        self.narrower = nn.ModuleList(program.own_module() for program in nested.programs[1:])
        self._reads = [_reads(module, plan) for module, plan in zip(self.narrower, nested.plans, strict=True)]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each width answers."""
        weights = dict(self.widest.named_parameters(remove_duplicate=False))
        found = [_answered(self.widest, args, kwargs)]
        for module, reads in zip(self.narrower, self._reads, strict=True):
            sliced = {id(read): sliced_by(weights[read.name], read.dims) for read in reads}
            for read in reads:
                read.owner.__dict__[read.attribute] = sliced[id(read)]
            try:
                found.append(_answered(module, args, kwargs))
            finally:
                for read in reads:
                    del read.owner.__dict__[read.attribute]
        return tuple(found)

    def programs(self, nested: NestedWidths) -> tuple[Program, ...]:
        """The programs with what was learnt: the narrower ones' parameters are slices of the widest's."""
        weights = dict(self.widest.named_parameters(remove_duplicate=False))
        made = [nested.programs[0].with_tensors(_owned(weights, self.widest))]
        for program, module, reads in zip(nested.programs[1:], self.narrower, self._reads, strict=True):
            own = {read.name: sliced_by(weights[read.name], read.dims) for read in reads}
            made.append(program.with_tensors(_owned(own, module)))
        return tuple(made)


def _answered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What one width answers; the inputs stay as they are for the next one."""
    own_args, own_kwargs = spared(module, (args, kwargs))
    return module(*own_args, **own_kwargs)


def sliced_by(tensor: Tensor, dims: Mapping[int, tuple[int, ...]]) -> Tensor:
    """The kept indices of a tensor: a view of it where they are the first ones."""
    for dim, kept in dims.items():
        if kept[-1] == len(kept) - 1:
            tensor = tensor.narrow(dim, 0, len(kept))
        else:
            tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    return tensor


def _reads(module: nn.Module, plan: PruningPlan) -> list[_Read]:
    """Every parameter of a narrower network, which is none of its own any more."""
    found = []
    for name, _ in list(module.named_parameters(remove_duplicate=False)):
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        found.append(_Read(owner, attribute, name, plan.tensors.get(name, {})))
    for read in found:
        del read.owner._parameters[read.attribute]
    return found


def _owned(parameters: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters, tied ones as one, and of the buffers that are a module's own."""
    copies: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, value in parameters.items():
        found[name] = copies.setdefault(id(value), nn.Parameter(value.detach().clone(), value.requires_grad))
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers(remove_duplicate=False)}
    return {**found, **buffers}
