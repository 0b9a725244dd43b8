"""Convolutions and products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.registry import rule
from edgeprune.formats.onnxin.windows import Window, padded, window_of

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


@rule("Conv")
def conv(call: Call) -> Tensor:
    """A convolution; padding that differs at both ends stands before it."""
    x, weight, bias = call.tensor(0), call.weight(1), call.optional(2)
    call.refuse_if(weight.dim() - 2 not in _CONV, "a convolution over 1 to 3 dims", weight.dim() - 2)
    window = window_of(call, tuple(weight.shape[2:]), x.shape[2:])
    x, padding = padded(x, window, 0.0)
    groups = call.attribute("group", 1)
    return _CONV[weight.dim() - 2](x, weight, bias, window.strides, padding, window.dilations, groups)


@rule("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """A transposed convolution; what is cut off unevenly is cut off behind it."""
    x, weight, bias = call.tensor(0), call.weight(1), call.optional(2)
    n_dims = weight.dim() - 2
    call.refuse_if(n_dims not in _TRANSPOSED, "a convolution over 1 to 3 dims", n_dims)
    window = window_of(call, tuple(weight.shape[2:]), x.shape[2:])
    extra = list(call.attribute("output_padding", [0] * n_dims))
    begins, ends = _cropped(call, x, window, extra)
    groups = call.attribute("group", 1)
    operator = _TRANSPOSED[n_dims]
    if begins == ends and all(begin >= 0 for begin in begins):
        return operator(x, weight, bias, window.strides, begins, extra, groups, window.dilations)
    full = operator(x, weight, bias, window.strides, [0] * n_dims, extra, groups, window.dilations)
    for dim, (begin, end) in enumerate(zip(begins, ends, strict=True), 2):
        full = full.narrow(dim, begin, full.shape[dim] - begin - end)
    return full


def _cropped(call: Call, x: Tensor, window: Window, extra: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off of each dim, at its begin and at its end."""
    n_dims = len(window.kernel)
    wanted = call.attribute("output_shape")
    mode = call.text("auto_pad", "NOTSET")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        return list(window.begins), list(window.ends)
    begins, ends = [], []
    for dim in range(n_dims):
        reach = window.dilations[dim] * (window.kernel[dim] - 1) + 1
        size = wanted[-n_dims:][dim] if wanted else x.shape[2 + dim] * window.strides[dim]
        total = window.strides[dim] * (x.shape[2 + dim] - 1) + extra[dim] + reach - size
        smaller, larger = total // 2, total - total // 2
        begins.append(smaller if mode == "SAME_UPPER" else larger)
        ends.append(larger if mode == "SAME_UPPER" else smaller)
    return begins, ends


@rule("Gemm")
def gemm(call: Call) -> Tensor:
    """A linear layer, where it is one: a times b, plus c."""
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = call.tensor(0) if call.constant(0) is None else call.weight(0)
    a = a.t() if call.attribute("transA", 0) else a
    weight = call.weight(1) if call.attribute("transB", 0) else call.weight(1, "weight", "transposed", Tensor.t)
    stored = call.constant(2)
    is_row = stored is not None and stored.numel() == stored.shape[-1:].numel() == weight.shape[0]
    if alpha == beta == 1.0 and stored is not None and is_row:
        return F.linear(a, weight, call.weight(2, "bias", "" if stored.dim() == 1 else "flat", _flat))
    return _plus(call.optional(2), beta, F.linear(a, weight) * alpha if alpha != 1.0 else F.linear(a, weight))


def _plus(bias: Tensor | None, beta: float, product: Tensor) -> Tensor:
    if bias is None or beta == 0:
        return product
    return product + (bias if beta == 1.0 else bias * beta)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 1 else tensor.reshape(-1)


@rule("MatMul")
def matmul(call: Call) -> Tensor:
    """A linear layer where the right side is a matrix of weights."""
    right = call.constant(1)
    if right is not None and right.dim() == 2 and call.constant(0) is None:
        return F.linear(call.tensor(0), call.weight(1, "weight", "transposed", Tensor.t))
    left = call.weight(0) if call.constant(0) is not None else call.tensor(0)
    return torch.matmul(left, call.weight(1) if right is not None else call.tensor(1))


@rule("Einsum")
def einsum(call: Call) -> Tensor:
    """Sums of products, as their equation says."""
    equation = call.text("equation", "").replace(" ", "")
    return torch.einsum(equation, [call.operand(position, "weight") for position in range(len(call))])
