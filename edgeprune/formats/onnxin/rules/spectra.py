"""Spectra: Fourier transforms of windows over a signal and of whole dims, as products with cosines and sines."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axis_of
from edgeprune.formats.onnxin.known import is_symbol
from edgeprune.formats.onnxin.nodes import torch_dtype
from edgeprune.formats.onnxin.registry import rule

_MOST = 4096  # numbers that are transformed at a time: their products take the square of it
_FLOAT = 1  # ONNX's number for float32
# Weights of 1, cos and cos of twice the angle.
_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


def _transform(length: int, n_bins: int, sign: float, dtype: torch.dtype) -> Tensor:
    """Cosines and sines `(2, n_bins, length)` that a signal of this length is multiplied by."""
    angles = torch.arange(length, dtype=torch.float64) * (2 * math.pi / length)
    waves = torch.stack([angles.cos(), sign * angles.sin()]).to(dtype)
    return waves[:, torch.outer(torch.arange(n_bins), torch.arange(length)) % length]


def _check_length(call: Call, length: object) -> int:
    call.refuse_if(is_symbol(length), "a transform of a stated length", "one that is free")
    call.refuse_if(not 1 <= int(length) <= _MOST, f"a transform of 1 to {_MOST} numbers", length)  # type: ignore[call-overload]
    return int(length)  # type: ignore[call-overload]


@rule("STFT")
def stft(call: Call) -> Tensor:
    """Windows over `(batch, length)` or `(batch, length, 1)` as `(batch, windows, bins, 2)`: a convolution."""
    x, window = call.tensor(0), call.constant(2)
    call.refuse_if(call.has(2) and window is None, "a window that is constant", "one that is computed")
    if x.dim() == 3:
        call.refuse_if(x.shape[2] != 1, "a real signal", "a complex one")
        x = x.squeeze(2)
    default = x.shape[1] if window is None else len(window)
    length = _check_length(call, call.scalar(3) if call.has(3) else default)
    n_bins = length // 2 + 1 if call.attribute("onesided", 1) else length
    basis = _transform(length, n_bins, -1.0, x.dtype)
    if window is not None:
        basis = basis * window.to(x.dtype)
    kernel = call.made("transform", basis.reshape(2 * n_bins, 1, length))
    found = F.conv1d(x.unsqueeze(1), kernel, stride=int(call.scalar(1)))
    return found.unflatten(1, (2, n_bins)).permute(0, 3, 2, 1)


@rule("DFT")
def dft(call: Call) -> Tensor:
    """A dim of `(..., 1)`, real, or `(..., 2)`, complex, transformed, or transformed back."""
    x, inverse, onesided = call.tensor(0), bool(call.attribute("inverse", 0)), bool(call.attribute("onesided", 0))
    call.refuse_if(inverse and onesided, "both sides of a spectrum", "one, to be transformed back")
    axis = call.attribute("axis", 1) if call.opset < 20 else call.scalar(2) if call.has(2) else -2
    axis = axis_of(int(axis), x.dim())
    length = _check_length(call, call.scalar(1) if call.has(1) else x.shape[axis])
    n_bins = length // 2 + 1 if onesided else length
    given = min(_check_length(call, x.shape[axis]), length)
    basis = _transform(length, n_bins, 1.0 if inverse else -1.0, x.dtype)[..., :given] / (length if inverse else 1)
    cosines, sines = call.made("transform", basis).transpose(1, 2)
    parts = x.narrow(axis, 0, given).movedim(axis, -2).unbind(-1)
    real, imaginary = parts[0] @ cosines, parts[0] @ sines
    if len(parts) == 2:
        real, imaginary = real - parts[1] @ sines, imaginary + parts[1] @ cosines
    return torch.stack([real, imaginary], -1).movedim(-2, axis)


@rule(*_WINDOWS)
def window_function(call: Call) -> Tensor:
    """A window `(size,)` over a signal."""
    size = _check_length(call, call.scalar(0))
    period = size if call.attribute("periodic", 1) else max(size - 1, 1)
    angles = torch.arange(size, dtype=torch.float64) * (2 * math.pi / period)
    one, cosine, twice = _WINDOWS[call.node.op]
    found = one - cosine * angles.cos() + twice * (2 * angles).cos()
    return found.to(torch_dtype(call.attribute("output_datatype", _FLOAT), "attribute 'output_datatype'"))
