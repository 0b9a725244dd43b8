"""Weights as raw records: sizes, strides and offsets are checked against the record before a tensor is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgeprune.errors import InputError, UnsafeFileError

# Data types by their number in a .pt2.
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
}
_MAX_EXPANDED_BYTES = 2**26
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def dtype_of(meta: Mapping[str, Any], where: str) -> torch.dtype:
    """The data type of a tensor's description, or UnsafeFileError."""
    if meta["dtype"] not in DTYPES:
        raise UnsafeFileError(f"{where}: expected a known data type, got number {meta['dtype']}")
    return DTYPES[meta["dtype"]]


def _fixed(values: list[dict[str, Any]], where: str) -> list[int]:
    sizes = [value.get("as_int") for value in values]
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise UnsafeFileError(f"{where}: expected fixed sizes, strides and offset of 0 or more, got {str(values)[:80]}")
    return sizes  # type: ignore[return-value]


def tensors_from_records(
    config: dict[str, dict[str, Any]], records: Mapping[str, bytes], folder: str, prefix: str
) -> dict[str, torch.Tensor]:
    """The tensors that a payload config describes; those that shared a record share their memory.

    Args:
        config: by tensor name, a checked `Payload`.
        records: by record name, its bytes.
        folder: where the records lie, e.g. `data/weights/`.
        prefix: how their names begin, e.g. `weight_`.

    Raises:
        UnsafeFileError: a payload needs unpickling, or reaches outside of its record.
    """
    storages: dict[tuple[str, int], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, payload in config.items():
        path, meta = payload["path_name"], payload.get("tensor_meta")
        if payload["use_pickle"] or meta is None or not path.startswith(prefix):
            raise UnsafeFileError(f"tensor {name!r}: expected raw bytes, got record {path!r}, which needs unpickling")
        record = records.get(folder + path)
        if record is None:
            raise InputError(f"tensor {name!r}: expected the record {folder + path!r}, got none")
        dtype = dtype_of(meta, f"tensor {name!r}")
        sizes, strides = _fixed(meta["sizes"], name), _fixed(meta["strides"], name)
        [offset] = _fixed([meta["storage_offset"]], name)
        _check_bounds(name, (sizes, strides, offset), len(record), dtype)
        if (path, meta["dtype"]) not in storages:
            storages[path, meta["dtype"]] = _storage(record, dtype)
        tensor = torch.as_strided(storages[path, meta["dtype"]], sizes, strides, offset)
        if payload["is_param"]:
            requires_grad = meta["requires_grad"] and (dtype.is_floating_point or dtype.is_complex)
            tensors[name] = nn.Parameter(tensor, requires_grad=requires_grad)
        else:
            tensors[name] = tensor
    return tensors


def _check_bounds(name: str, geometry: tuple[list[int], list[int], int], n_bytes: int, dtype: torch.dtype) -> None:
    sizes, strides, offset = geometry
    if len(sizes) != len(strides) or len(sizes) > 64:
        raise UnsafeFileError(f"tensor {name!r}: expected a stride for each size, got {len(sizes)} and {len(strides)}")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    needed = 0 if 0 in sizes else (last + 1) * dtype.itemsize
    count = 1
    for size in sizes:
        count *= size
    # A stride of 0 lets a small record stand for a tensor of any size.
    if needed > n_bytes or count * dtype.itemsize > max(n_bytes, _MAX_EXPANDED_BYTES):
        raise UnsafeFileError(
            f"tensor {name!r}: expected it inside of its record of {n_bytes} bytes, got {sizes} by {strides}"
        )


def _storage(record: bytes, dtype: torch.dtype) -> torch.Tensor:
    """One flat tensor `(n,)` over a copy of the record; a remainder that fills no element is left off."""
    n = len(record) // dtype.itemsize
    if n == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(record), dtype=dtype, count=n)


def records_from_tensors(
    tensors: Mapping[str, torch.Tensor], folder: str, prefix: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Raw records and their payload config: the inverse of `tensors_from_records`.

    Tensors that share memory share a record; others are written compactly, even if they view a larger storage.
    """
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.dtype) if tensor.numel() else name
        groups.setdefault(key, []).append(name)
    records: dict[str, bytes] = {}
    config: dict[str, Any] = {}
    for index, names in enumerate(groups.values()):
        path = f"{prefix}{index}"
        shared = _span([tensors[name].detach() for name in names])
        records[folder + path] = shared.contiguous().view(torch.uint8).numpy().tobytes() if shared.numel() else b""
        start = shared.storage_offset()
        for name in names:
            tensor = tensors[name].detach() if len(names) > 1 else _dense(tensors[name].detach())
            offset = tensor.storage_offset() - start if len(names) > 1 else 0
            meta = _meta(tensor, int(offset), tensors[name].requires_grad)
            config[name] = _payload(path, isinstance(tensors[name], nn.Parameter), meta)
    return records, config


def empty_records(
    tensors: Mapping[str, torch.Tensor], folder: str, prefix: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """As `records_from_tensors`, but without the values: PyTorch makes zeros of the shape for a record of no bytes."""
    records: dict[str, bytes] = {}
    config: dict[str, Any] = {}
    for index, (name, tensor) in enumerate(tensors.items()):
        path = f"{prefix}{index}"
        records[folder + path] = b""
        meta = _meta(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), 0, tensor.requires_grad)
        config[name] = _payload(path, isinstance(tensor, nn.Parameter), meta)
    return records, config


def _payload(path: str, is_param: bool, meta: dict[str, Any]) -> dict[str, Any]:
    return {"path_name": path, "is_param": is_param, "use_pickle": False, "tensor_meta": meta}


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where its elements fill a stretch of memory, else a contiguous copy."""
    order = sorted(range(tensor.dim()), key=lambda dim: tensor.stride(dim))
    expected = 1
    for dim in order:
        if tensor.shape[dim] > 1 and tensor.stride(dim) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[dim]
    return tensor


def _span(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The stretch of memory `(n,)` from the first element of any of the tensors to the last of any."""
    if len(tensors) == 1:
        tensor = _dense(tensors[0])
        return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    start = min(tensor.storage_offset() for tensor in tensors)
    stop = max(
        tensor.storage_offset()
        + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        + 1
        for tensor in tensors
    )
    return tensors[0].as_strided((stop - start,), (1,), start)


def _meta(tensor: torch.Tensor, offset: int, requires_grad: bool) -> dict[str, Any]:
    return {
        "dtype": _NUMBERS[tensor.dtype],
        "sizes": [{"as_int": size} for size in tensor.shape],
        "requires_grad": requires_grad,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in tensor.stride()],
        "storage_offset": {"as_int": offset},
        "layout": 7,
    }
