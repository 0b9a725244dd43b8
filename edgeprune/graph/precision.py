"""A network in float64: what a coarser type rounds away is not an error of a cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

HALF = (torch.float16, torch.bfloat16)  # floating-point numbers of 16 bits


def in_float64(network: nn.Module) -> nn.Module:
    """The network in float64, in place, also where its graph names a float type; what only asserts a type goes.

    A graph's weights may be those of its program, and of the user's module that it was made of: they stay as they are.
    """
    if isinstance(network, fx.GraphModule):
        _take_copies(network)
        for node in list(network.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                network.graph.erase_node(node)
            elif node.op == "call_function":
                node.args = fx.node.map_aggregate(node.args, _doubled)
                node.kwargs = fx.node.map_aggregate(node.kwargs, _doubled)
        network.recompile()
    network.double()
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype is torch.complex64:
                module._buffers[name] = buffer.to(torch.complex128)
    return network


def _take_copies(network: nn.Module) -> None:
    """Let a network hold tensors of its own: a conversion would change the data of those that it shares."""
    copies: dict[int, Tensor] = {}  # what is tied stays tied
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_floating_point():
                    held[name] = copies.setdefault(id(tensor), _copied(tensor))  # type: ignore[assignment]


def _copied(tensor: Tensor) -> Tensor:
    """Another tensor object with the same numbers; those are copied by what converts them."""
    return nn.Parameter(tensor.detach(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else tensor.detach()


def arguments_in_float64(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a network with every float tensor in float64."""
    converted: tuple[Any, ...] = tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, args
    )
    return converted


def _doubled(value: Any) -> Any:
    if isinstance(value, torch.dtype) and value.is_complex:
        return torch.complex128
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


@contextmanager
def float64_by_default() -> Iterator[None]:
    """Inside, what a network makes without naming a type (`arange`, `zeros`) is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
