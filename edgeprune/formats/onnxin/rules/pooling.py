"""Pooling over windows and over whole images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.registry import rule
from edgeprune.formats.onnxin.windows import Window, cut_to_windows, padded, padded_by, window_of

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_WHOLE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _window(call: Call, x: Tensor) -> Window:
    kernel = tuple(call.attribute("kernel_shape", ()))
    call.refuse_if(len(kernel) not in _MAX or x.dim() != len(kernel) + 2, "a window over 1 to 3 dims", list(kernel))
    return window_of(call, kernel, x.shape[2:])


@rule("MaxPool")
def max_pool(call: Call) -> Tensor:
    """The largest of each window."""
    call.refuse_if(len([name for name in call.node.outputs if name]) > 1, "one output", "the places of the largest too")
    x = call.tensor(0)
    window, ceil, sizes = _window(call, x), bool(call.attribute("ceil_mode", 0)), x.shape[2:]
    if any(
        isinstance(size, int) and 2 * size > reach for size, reach in zip(window.begins, window.kernel, strict=True)
    ):
        x, padding = padded_by(x, window.begins, window.ends, -math.inf), [0] * len(window.kernel)
    else:
        x, padding = padded(x, window, -math.inf)
    largest = _MAX[len(window.kernel)](x, window.kernel, window.strides, padding, window.dilations, ceil)
    return cut_to_windows(largest, sizes, window) if ceil else largest


@rule("AveragePool")
def average_pool(call: Call) -> Tensor:
    """The mean of each window; of padding only where `count_include_pad` says so."""
    x = call.tensor(0)
    window, ceil = _window(call, x), bool(call.attribute("ceil_mode", 0))
    call.refuse_if(set(window.dilations) != {1}, "windows without dilation", list(window.dilations))
    counted = bool(call.attribute("count_include_pad", 0))
    if window.is_even and all(2 * size <= reach for size, reach in zip(window.begins, window.kernel, strict=True)):
        return _MEAN[len(window.kernel)](x, window.kernel, window.strides, list(window.begins), ceil, counted)
    mean = _mean(x, window, ceil)
    return mean if counted else mean / _mean(torch.ones_like(x[:1, :1]), window, ceil)


@rule("LpPool")
def norm_pool(call: Call) -> Tensor:
    """The p-norm of each window."""
    x, p = call.tensor(0), call.attribute("p", 2)
    window, ceil = _window(call, x), bool(call.attribute("ceil_mode", 0))
    call.refuse_if(set(window.dilations) != {1}, "windows without dilation", list(window.dilations))
    sizes, n_dims = x.shape[2:], len(window.kernel)
    ends = [end + stride - 1 if ceil else end for end, stride in zip(window.ends, window.strides, strict=True)]
    # Of windows counted upwards a mean is that of their part inside: what they reach beyond is padded first.
    powers = padded_by(x.abs() ** p, window.begins, ends, 0.0)
    mean = _MEAN[n_dims](powers, window.kernel, window.strides, [0] * n_dims)
    total = cut_to_windows(mean, sizes, window) if ceil else mean
    return (total * math.prod(window.kernel)) ** (1 / p)


def _mean(x: Tensor, window: Window, ceil: bool) -> Tensor:
    """The mean of each window, padding included."""
    n_dims = len(window.kernel)
    grown = padded_by(x, window.begins, window.ends, 0.0)
    mean = _MEAN[n_dims](grown, window.kernel, window.strides, [0] * n_dims, ceil)
    return cut_to_windows(mean, x.shape[2:], window) if ceil else mean


@rule("GlobalAveragePool")
def global_average(call: Call) -> Tensor:
    """The mean of each channel."""
    x = call.tensor(0)
    if x.dim() - 2 in _WHOLE:
        return _WHOLE[x.dim() - 2](x, 1)
    return x.mean(list(range(2, x.dim())), keepdim=True)


@rule("GlobalMaxPool")
def global_max(call: Call) -> Tensor:
    """The largest of each channel."""
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), keepdim=True)


@rule("GlobalLpPool")
def global_norm(call: Call) -> Tensor:
    """The p-norm of each channel."""
    x = call.tensor(0)
    return torch.linalg.vector_norm(x, float(call.attribute("p", 2)), list(range(2, x.dim())), keepdim=True)
