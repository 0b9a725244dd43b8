"""Tensors that a file holds: plain ones, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgeprune.errors import InputError
from edgeprune.lines import shown

_MAX_EXPANDED_BYTES = 2**26


def tensors_of(value: Any, where: str = "state_dict") -> dict[str, torch.Tensor]:
    """Plain, dense CPU tensors by name, or InputError that says `where` they are looked for."""
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where}: expected tensors by name, got {'none' if not value else type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{where}: expected tensors by name, got a {type(tensor).__name__} for {shown(name)}")
        check_dense(tensor, f"{where} {shown(name)}")
    return dict(value)


def check_dense(tensor: torch.Tensor, where: str) -> None:
    """Raise InputError for a tensor that is no plain one of real numbers in the CPU's memory."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise InputError(f"{where}: expected a dense tensor, got {tensor.layout} on {tensor.device}")
    if tensor.is_complex():
        raise InputError(f"{where}: expected real numbers, got {tensor.dtype}")
    n_bytes = tensor.numel() * tensor.element_size()
    if n_bytes > max(tensor.untyped_storage().nbytes(), _MAX_EXPANDED_BYTES):  # a stride of 0 makes much of little
        raise InputError(f"{where}: expected {n_bytes:,} bytes, got fewer that stand for them")
