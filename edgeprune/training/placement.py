"""What training and evaluation set up around a network, and put back: its mode, its place, threads, random states."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.modules.dropout import _DropoutNd

from edgeprune.data.inputs import FloatTypes
from edgeprune.graph.trainable import TrainableModule


def float_type(module: nn.Module | ExportedProgram) -> FloatTypes:
    """The type that a network's floating-point inputs must have: as its graph states it, else that of its weights.

    By their names where a graph states several. A network may convert its inputs to another type than they have; only a
    graph tells. One that was itself converted since it was captured states types that are no longer its own.
    """
    own = weight_type(module)
    if isinstance(module, ExportedProgram):
        return _common(_stated(module.graph, "placeholder", module.graph_signature.user_inputs), own)
    if not isinstance(module, fx.GraphModule):
        return own
    held = _stated(module.graph, "get_attr")
    if held and own not in held.values():
        return own
    return _common(_stated(module.graph, "placeholder"), own)


def one_float_type(module: nn.Module | ExportedProgram) -> torch.dtype:
    """That of the inputs whose own type nobody states: float32 where the graph states several."""
    types = float_type(module)
    return types if isinstance(types, torch.dtype) else torch.float32


def _common(types: Mapping[str, torch.dtype], own: torch.dtype) -> FloatTypes:
    """The one type of all, `own` where there are none; else all."""
    found = set(types.values())
    return types if len(found) > 1 else next(iter(found), own)


def _stated(graph: fx.Graph, kind: str, names: Collection[object] | None = None) -> dict[str, torch.dtype]:
    """The floating-point types of a kind of nodes by name, of those with these names where they are said."""
    nodes = [node for node in graph.nodes if node.op == kind and (names is None or node.name in names)]
    values = {node.name: node.meta.get("val") for node in nodes}
    return {
        name: value.dtype
        for name, value in values.items()
        if isinstance(value, Tensor) and value.dtype.is_floating_point
    }


def weight_type(module: nn.Module | ExportedProgram) -> torch.dtype:
    """The type of a network's first floating-point parameter; float32 where it has none."""
    types = (param.dtype for param in module.parameters() if param.dtype.is_floating_point)
    return next(types, torch.float32)


def device_of(module: nn.Module) -> torch.device:
    """Where a network lies."""
    return next((param.device for param in module.parameters()), torch.device("cpu"))


def is_movable(module: nn.Module) -> bool:
    """Whether a network computes wherever it is moved: a graph may have the device of its capture written into it."""
    return not isinstance(module, fx.GraphModule) or all("device" not in node.kwargs for node in module.graph.nodes)


@contextmanager
def placed(module: nn.Module, device: torch.device, channels_last: bool = False) -> Iterator[None]:
    """Move a network to a device, with its channels last in memory where asked for; then put both back."""
    before = device_of(module)
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if channels_last:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        module.to(before)


@contextmanager
def seeded(seed: int, rank: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch for one of the processes that train, then put the random states back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_seed_of(seed, rank))
        yield


def _seed_of(seed: int, rank: int) -> int:
    """Another for each process; the main one has the training's. PyTorch draws by the lower 32 bits alone."""
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]) if rank else seed


def random_state(device: torch.device) -> Tensor:
    """The random states that training draws from, uint8 `(n_bytes,)`: the CPU's, then the GPU's."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put back what `random_state` gave; RuntimeError where it is of another device or damaged."""
    n_cpu = len(torch.get_rng_state())
    torch.set_rng_state(state[:n_cpu].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[n_cpu:].clone(), device)


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads, or as many as before for None; then put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def begin_training(module: nn.Module, draws: bool) -> None:
    """Put a module in training mode; without `draws` the dropout in it stays out."""
    for part in module.modules():
        if isinstance(part, TrainableModule):
            part.draws = draws
    module.train()
    for part in module.modules():
        if not draws and isinstance(part, _DropoutNd):
            part.eval()


@contextmanager
def in_eval(module: nn.Module | None) -> Iterator[None]:
    """Put a module in eval mode, and back into train mode if it was in it."""
    was_training = module is not None and module.training
    if module is not None and was_training:
        module.eval()
    try:
        yield
    finally:
        if module is not None and was_training:
            module.train()
