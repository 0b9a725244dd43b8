"""The windows of convolutions and of pooling: strides, dilations, and padding by the three ways to state it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.known import Size, is_symbol


@dataclass(frozen=True, slots=True)
class Window:
    """A window over some dims: a number for each; `begins` and `ends` are what the input is padded by."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[Size, ...]
    ends: tuple[Size, ...]

    @property
    def is_even(self) -> bool:
        """Whether both ends are padded alike."""
        return self.begins == self.ends and all(isinstance(size, int) and size >= 0 for size in self.begins)


def window_of(call: Call, kernel: tuple[int, ...], sizes: Sequence[Size]) -> Window:
    """The window of a node whose input has these sizes."""
    n_dims = len(kernel)
    strides = tuple(call.attribute("strides", [1] * n_dims))
    dilations = tuple(call.attribute("dilations", [1] * n_dims))
    if {len(strides), len(dilations), len(sizes)} != {n_dims}:
        raise InputError(f"expected strides and dilations for {n_dims} dims, got {len(strides)} and {len(dilations)}")
    mode = call.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [_same(*given) for given in zip(sizes, kernel, strides, dilations, strict=True)]
        smaller = tuple(total // 2 for total in totals)
        larger = tuple(total - total // 2 for total in totals)
        begins, ends = (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)
        return Window(kernel, strides, dilations, begins, ends)
    pads = list(call.attribute("pads", [0] * (2 * n_dims))) if mode == "NOTSET" else [0] * (2 * n_dims)
    if len(pads) != 2 * n_dims:
        raise InputError(f"expected {2 * n_dims} pads, got {len(pads)}")
    return Window(kernel, strides, dilations, tuple(pads[:n_dims]), tuple(pads[n_dims:]))


def _same(size: Size, kernel: int, stride: int, dilation: int) -> Size:
    """By how much a dim is padded for as many windows as strides fit into it."""
    total = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size
    return max(total, 0)


def padded(x: Tensor, window: Window, value: float) -> tuple[Tensor, list[int]]:
    """The input, padded by `value` where the operator cannot do it, and what is left for the operator to pad."""
    if window.is_even:
        return x, list(window.begins)
    return padded_by(x, window.begins, window.ends, value), [0] * len(window.kernel)


def padded_by(x: Tensor, begins: Sequence[Size], ends: Sequence[Size], value: float) -> Tensor:
    """The last dims of an input padded, each at both ends."""
    if not any(bool(size != 0) for size in (*begins, *ends)):
        return x
    flat = [size for pair in reversed(list(zip(begins, ends, strict=True))) for size in pair]
    return F.pad(x, flat, "constant", value)


def cut_to_windows(pooled: Tensor, sizes: Sequence[Size], window: Window) -> Tensor:
    """Without the last of windows counted upwards where it starts behind an input of these sizes, in its padding.

    PyTorch leaves such a one out of padding that it does itself alone.
    """
    for dim, size in enumerate(sizes):
        begin, end, stride = window.begins[dim], window.ends[dim], window.strides[dim]
        reach = window.dilations[dim] * (window.kernel[dim] - 1) + 1
        if not is_symbol(end) and end + stride <= reach:
            continue
        rounded = -(-(size + begin + end - reach) // stride) + 1
        n_windows = torch.sym_min(rounded, (size + begin - 1) // stride + 1)
        if is_symbol(n_windows) or n_windows != pooled.shape[2 + dim]:
            pooled = pooled[(*[slice(None)] * (2 + dim), slice(None, n_windows))]
    return pooled
