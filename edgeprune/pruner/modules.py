"""The modules on both sides of a Pruner: the one that it is made of, and those that it hands out and takes back."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.utils._pytree import tree_map

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.given import check_untrained, giver_of
from edgeprune.graph.renaming import own_name
from edgeprune.graph.weights import inside


def unwrapped(model: nn.Module) -> nn.Module:
    """The module in the wrappers of torch.compile, DistributedDataParallel and the like.

    Raises:
        InputError: it is no module, or its own call or that of a part is compiled, which keeps the sizes of before.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"Pruner: expected an nn.Module, got a {type(model).__name__}")
    while isinstance(model, OptimizedModule | nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
        model = inside(model)
    check_not_compiled(model, "Pruner")
    return model


def check_not_compiled(model: nn.Module, who: str) -> None:
    """Raise InputError where a module, or a part of it, is compiled: a graph of fixed sizes runs in its place."""
    for name, part in model.named_modules():
        if isinstance(part, OptimizedModule) or getattr(part, "_compiled_call_impl", None) is not None:
            where = f"its part {name!r} is" if name else "it is"
            raise InputError(
                f"{who}: expected a module that is not compiled, got a {type(model).__name__}: {where}; prune first, "
                "and compile what comes of each step"
            )


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters, or its buffers, lie."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def on_cpu(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A module and its inputs where they are captured: itself on the CPU, else a copy."""
    inputs = tree_map(lambda value: value.detach().cpu() if isinstance(value, Tensor) else value, inputs)
    if all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers())):
        return model, inputs
    return copy.deepcopy(model).cpu(), inputs


def handed_out(program: Program, device: torch.device) -> fx.GraphModule:
    """A module of a program on a device, in training mode as any new module is."""
    module = program.module().to(device)
    module.train()
    return module


def parameters_of(module: nn.Module, program: Program) -> dict[str, nn.Parameter]:
    """The parameters of a module by the names that the program has for them: one that it gave, or the user's class."""
    own = dict(module.named_parameters(remove_duplicate=False))
    if giver_of(module) is not None:
        return own
    names = {name: own_name(name) for name in program.graph_signature.parameters}
    return {name: own[mine] for name, mine in names.items() if mine in own}


def check_origin(module: nn.Module, program: Program | None) -> None:
    """Refuse a module that another program gave; one of the user's class came from none.

    Raises:
        InputError: it is of an earlier step, or of another Pruner, or no module.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"Pruner: expected an nn.Module, got a {type(module).__name__}")
    giver = giver_of(module)
    if giver is not None and giver is not program:
        raise InputError(
            "Pruner: expected the module that it handed out last, a copy of it or the class that it was made of, got a "
            "module of an earlier step or of another program"
        )


def _is_as_given(module: nn.Module, program: Program) -> bool:
    """Whether a module still has the values of the program that gave it: nobody has trained it."""
    own = {**program.constants, **program.state_dict}
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return all(torch.equal(own[name].detach(), tensor.detach().cpu()) for name, tensor in named if name in own)


def check_no_other(module: nn.Module, program: Program) -> None:
    """Refuse a loop that trained a copy of what a program gave, and not that itself: a Pruner does not see it.

    An average beside a module that is trained is no such copy.

    Raises:
        InputError: a copy has been trained.
    """
    if not _is_as_given(module, program):
        return
    try:
        check_untrained(program)
    except InputError as error:
        raise InputError(
            "Pruner: expected that the module is trained that it handed out, got a copy that was trained in its place; "
            "hand it back by pruner.take(copy)"
        ) from error
