"""Capture a network for the inputs of a data set, or for named ones whose shapes and types are stated."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.data.fitting import by_name
from edgeprune.data.named import torch_type
from edgeprune.errors import CaptureError, InputError
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.single import capture_single
from edgeprune.graph.sizes import Asked
from edgeprune.records import DataSource, InputInfo

_BATCH = 2
_FREE = 8  # of a size that nobody states
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def captured(model: nn.Module, data: DataSource, dtype: torch.dtype = torch.float32) -> Program:
    """The program of a network on the data's inputs, floats in this type; errors as `capture_named`."""
    if data.inputs:
        return capture_named(model, data.inputs, dtype)
    return capture_single(model, data.input_shape, dtype)


def captured_of_ids(model: nn.Module, data: DataSource) -> Program:
    """The program of a network whose first input looks up rows by the whole numbers of a lone `x`.

    Raises:
        InputError: the data hold others.
        CaptureError: the network does not take whole numbers either.
    """
    first = next(iter(inspect.signature(model.forward).parameters), "x")
    return captured(model, by_name(data, first))


def capture_named(
    model: nn.Module,
    infos: Sequence[InputInfo],
    dtype: torch.dtype = torch.float32,
    dynamic: Mapping[str, Asked] | None = None,
    dynamic_size: bool = False,
) -> Program:
    """Capture a network that takes inputs by the names of its forward's parameters; sizes that are None stay free.

    Args:
        model: the network.
        infos: its inputs, without the batch.
        dtype: of the inputs that are stated as float32.
        dynamic: further free dims, see `capture`.
        dynamic_size: whether height and width are free, of inputs that state no free sizes of their own.

    Raises:
        InputError: the forward takes other inputs.
        CaptureError: it cannot be exported, or fixes a size that was to be free.
    """
    names = _positions(model, infos)
    free = {**_free_of(infos), **(dynamic or {})}
    by_name = {info.name: info for info in infos}
    # The narrow ones index what a network surely has.
    wide, narrow = (_arguments(names, by_name, dtype, spread) for spread in (True, False))
    try:
        return capture(model, wide, dynamic_size=dynamic_size, dynamic=free)
    except CaptureError:
        if all(_same(one, other) for one, other in zip(wide, narrow, strict=True)):
            raise
        return capture(model, narrow, dynamic_size=dynamic_size, dynamic=free)


def _free_of(infos: Sequence[InputInfo]) -> dict[str, Asked]:
    """The dims that are free, the batch among them, of inputs that state such."""
    return {
        info.name: dict.fromkeys([0, *(dim for dim, size in enumerate(info.shape, 1) if size is None)])
        for info in infos
        if None in info.shape
    }


def _positions(model: nn.Module, infos: Sequence[InputInfo]) -> dict[str, Any]:
    """The forward's parameters up to the last that is named, with the defaults of those that are not."""
    signature = inspect.signature(model.forward).parameters
    parameters = {name: parameter for name, parameter in signature.items() if parameter.kind not in _STARS}
    given = [info.name for info in infos]
    _check_taken(parameters, given)
    last = max(list(parameters).index(name) for name in given)
    return {name: parameters[name].default for name in list(parameters)[: last + 1]}


def _check_taken(parameters: Mapping[str, inspect.Parameter], given: Sequence[str]) -> None:
    """Raise InputError for inputs that are missing, doubled, or that the forward does not take."""
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if set(needed) <= set(given) <= set(parameters) and len(set(given)) == len(given):
        return
    others = ", ".join(name for name in parameters if name not in needed)
    beside = f" (and {others} where wanted)" if others else ""
    raise InputError(
        f"expected inputs {', '.join(needed) or 'none'} as the network takes them{beside}, got {', '.join(given)}"
    )


def _arguments(
    names: Mapping[str, Any], infos: Mapping[str, InputInfo], dtype: torch.dtype, spread: bool
) -> tuple[Any, ...]:
    return tuple(_example(infos[name], dtype, spread) if name in infos else default for name, default in names.items())


def _example(info: InputInfo, dtype: torch.dtype, spread: bool) -> Tensor:
    """Zeros of floats; whole numbers from 0 to the largest that is known where `spread`, else ones as in a mask."""
    sizes = (_BATCH, *(_FREE if size is None else size for size in info.shape))
    own = dtype if info.dtype == "float32" else torch_type(info.dtype)
    if own.is_floating_point:
        return torch.zeros(sizes, dtype=own)
    if not spread or info.largest is None or info.largest <= 1:
        return torch.ones(sizes, dtype=own)
    numbers = torch.arange(torch.Size(sizes).numel()) % (info.largest + 1)
    return numbers.reshape(sizes).to(own)


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one is other
