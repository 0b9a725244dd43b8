"""What bounds know of a program's operators: those that are affine in their first arguments, ReLU, and max pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_aten: Any = torch.ops.aten

# Affine in any of their arguments together.
SUMS = {_aten.add, _aten.sub, _aten.cat, _aten.stack}
# Affine in the first argument, whatever the other ones are, as long as these are no values of the network.
IN_FIRST = {
    _aten.linear, _aten.addmm, _aten.mm, _aten.matmul, _aten.conv1d, _aten.conv2d, _aten.conv3d, _aten.convolution,
    _aten.conv_transpose1d, _aten.conv_transpose2d, _aten.batch_norm, _aten.avg_pool1d, _aten.avg_pool2d,
    _aten.avg_pool3d, _aten.adaptive_avg_pool1d, _aten.adaptive_avg_pool2d, _aten.adaptive_avg_pool3d, _aten.mean,
    _aten.sum, _aten.flatten, _aten.view, _aten.reshape, _aten._unsafe_view, _aten.permute, _aten.transpose, _aten.t,
    _aten.squeeze, _aten.unsqueeze, _aten.slice, _aten.select, _aten.narrow, _aten.index_select, _aten.index,
    _aten.constant_pad_nd, _aten.pad, _aten.contiguous, _aten.clone, _aten.neg, _aten.div, _aten.mul, _aten.rsub,
    _aten.channel_shuffle, _aten.pixel_shuffle, _aten.expand, _aten.flip, _aten.roll, _aten.upsample_nearest2d,
    _aten.unflatten,
}  # fmt: skip
SAME = {
    _aten.dropout,
    _aten.alias,
    _aten.detach,
    _aten.to,
    _aten._to_copy,
    _aten.lift_fresh_copy,
    _aten.feature_dropout,
}
RELU = {_aten.relu, _aten.relu_}


def is_affine(packet: Any, n_values: int, is_first: bool) -> bool:
    """Whether an operator is affine in the network's values among its arguments: so many, and whether the first is."""
    if packet in SUMS:
        return True
    if packet in {_aten.mul, _aten.rsub}:
        return n_values == 1
    return packet in IN_FIRST and n_values == 1 and is_first


def in_training(node_target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a batch norm takes the statistics of the batch, or a dropout drops."""
    packet = packet_of(node_target)
    if packet is _aten.batch_norm:
        return bool(args[5])
    return packet in {_aten.dropout, _aten.feature_dropout} and bool(args[2])


def packet_of(target: Any) -> Any:
    """The operator, whichever of its overloads is called."""
    return getattr(target, "overloadpacket", target)


def windows_of(target: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """The windows of a max pooling over values of a shape, and the shape that comes out; None of another operator.

    Windows are int `(n, k)`; one that sticks out over the border has an element of its own in the place of those that
    are missing.
    """
    pool = _POOLS.get(packet_of(target))
    return None if pool is None else pool(shape, *args)


def _pooled_2d(
    shape: tuple[int, ...], kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> tuple[np.ndarray, tuple[int, ...]] | None:
    kernel, stride = _pair(kernel), _pair(stride) if stride else _pair(kernel)
    padding, dilation = _pair(padding), _pair(dilation)
    numbers = torch.arange(1, int(torch.Size(shape).numel()) + 1, dtype=torch.float64).reshape(1, *shape)
    if ceil or len(shape) != 3:
        return None
    padded = F.pad(numbers, (padding[1], padding[1], padding[0], padding[0]))
    columns = F.unfold(padded.transpose(0, 1), kernel, dilation=dilation, stride=stride)  # (channels, k, places)
    windows = columns.transpose(1, 2).flatten(0, 1).long() - 1
    windows = torch.where(windows < 0, windows.max(1, keepdim=True).values, windows)
    out = F.max_pool2d(numbers, kernel, stride, padding, dilation)
    return windows.numpy(), tuple(out.shape[1:])


def _pooled_1d(
    shape: tuple[int, ...], kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> tuple[np.ndarray, tuple[int, ...]] | None:
    def one(value: Any) -> int:
        return int(value if isinstance(value, int) else value[0])

    flat = (shape[0], 1, shape[-1])
    found = _pooled_2d(flat, (1, one(kernel)), (1, one(stride or kernel)), (0, one(padding)), (1, one(dilation)), ceil)
    return None if found is None or len(shape) != 2 else (found[0], (found[1][0], found[1][2]))


def _largest(
    shape: tuple[int, ...], dims: Any = (), keepdim: bool = False
) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """`amax`: over whole dims, the samples' not among them."""
    wanted = sorted({dim % (len(shape) + 1) for dim in ([dims] if isinstance(dims, int) else dims)})
    if not wanted or 0 in wanted:
        return None
    inner = [dim - 1 for dim in wanted]
    outer = [dim for dim in range(len(shape)) if dim not in inner]
    numbers = torch.arange(int(torch.Size(shape).numel())).reshape(shape)
    kept = torch.amin(numbers, inner, keepdim).shape
    return numbers.permute(*outer, *inner).reshape(int(kept.numel()), -1).numpy(), tuple(kept)


def _whole(shape: tuple[int, ...], size: Any) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """`adaptive_max_pool2d` to one value a channel."""
    if len(shape) != 3 or tuple(_pair(size)) != (1, 1):
        return None
    return _largest(shape, (2, 3), True)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


_POOLS: dict[Any, Callable[..., tuple[np.ndarray, tuple[int, ...]] | None]] = {
    _aten.max_pool2d: _pooled_2d,
    _aten.max_pool2d_with_indices: _pooled_2d,
    _aten.max_pool1d: _pooled_1d,
    _aten.amax: _largest,
    _aten.adaptive_max_pool2d: _whole,
}


def as_float64(value: Any) -> Any:
    """A constant in float64, where it holds floats."""
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
