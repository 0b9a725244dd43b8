"""Capture a network that takes one input."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.sizes import Asked

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def capture_single(
    model: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    dynamic_size: bool = False,
    dynamic: Mapping[str, Asked] | None = None,
) -> Program:
    """Capture a network that takes one input of `shape`, without the batch.

    Raises:
        InputError: it needs more inputs than one.
        CaptureError: it cannot be exported, or fixes a height or width that was to be free.
    """
    needed = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC
    ]
    if len(needed) > 1:
        raise InputError(f"expected a network with one input, got {len(needed)}: {', '.join(needed)}")
    return capture(model, torch.zeros(2, *shape, dtype=dtype), dynamic_size=dynamic_size, dynamic=dynamic)
