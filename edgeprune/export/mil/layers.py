"""MIL's layers: contractions, pooling, normalisation, reductions, attention and recurrence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.errors import InputError
from edgeprune.export.mil.registry import RULES, Call, rule

# -- contractions --------------------------------------------------------------------------------------------------


@rule("linear")
def _linear(call: Call) -> Tensor:
    return F.linear(call["x"], call["weight"], call.maybe("bias"))


@rule("matmul")
def _matmul(call: Call) -> Tensor:
    x, y = call["x"], call["y"]
    x = x.transpose(-1, -2) if call.flag("transpose_x") else x
    return torch.matmul(x, y.transpose(-1, -2) if call.flag("transpose_y") else y)


@rule("einsum")
def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.text("equation"), *call.inputs["values"])


@rule("conv")
def _conv(call: Call) -> Tensor:
    x, weight = call["x"], call["weight"]
    n_dims = x.dim() - 2
    strides, dilations = (call.integers(name, [1] * n_dims) for name in ("strides", "dilations"))
    kernel = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    x = F.pad(x, _backward(_padding(call, x, kernel, strides)))
    function = (F.conv1d, F.conv2d, F.conv3d)[n_dims - 1]
    groups = call.integers("groups", [1])[0]
    return function(x, weight, call.maybe("bias"), strides, 0, dilations, groups)


@rule("conv_transpose")
def _conv_transpose(call: Call) -> Tensor:
    """What lies outside is cut from the whole."""
    x, weight = call["x"], call["weight"]
    n_dims = x.dim() - 2
    strides, dilations = (call.integers(name, [1] * n_dims) for name in ("strides", "dilations"))
    if call.text("pad_type", "valid") not in ("custom", "valid"):
        raise InputError(f"conv_transpose with pad_type {call.text('pad_type')} is not known")
    pads = call.integers("pad", [0] * 2 * n_dims) if call.text("pad_type") == "custom" else [0] * 2 * n_dims
    groups = call.integers("groups", [1])[0]
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n_dims - 1]
    wanted = call.integers("output_shape")
    # Enough at the end that any output shape lies within.
    y = function(x, weight, call.maybe("bias"), strides, 0, [step - 1 for step in strides], groups, dilations)
    for dim in range(n_dims):
        kernel = (weight.shape[2 + dim] - 1) * dilations[dim] + 1
        whole = (x.shape[2 + dim] - 1) * strides[dim] + kernel
        size = wanted[2 + dim] if wanted else whole - pads[2 * dim] - pads[2 * dim + 1]
        y = y.narrow(2 + dim, pads[2 * dim], size)
    return y


def _padding(call: Call, x: Tensor, kernel: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Before and after each dim behind the channels."""
    kind = call.text("pad_type", "valid")
    if kind == "custom":
        return call.integers("pad", [0] * 2 * len(kernel))
    if kind == "valid":
        return [0] * 2 * len(kernel)
    pads = []
    for size, window, step in zip(x.shape[2:], kernel, strides, strict=True):
        total = max(0, (-(-size // step) - 1) * step + window - size)
        less, more = total // 2, total - total // 2
        pads += [less, more] if kind == "same" else [more, less]
    return pads


def _backward(pads: Sequence[int]) -> list[int]:
    """As PyTorch wants them, the last dim first."""
    return [pads[k + side] for k in range(len(pads) - 2, -1, -2) for side in (0, 1)]


# -- pooling -------------------------------------------------------------------------------------------------------


@rule("max_pool", "avg_pool")
def _pool(call: Call) -> Tensor:
    """Of padded values; an average counts padding unless told not to, and nothing beyond it."""
    x = call["x"]
    kernel = call.integers("kernel_sizes")
    strides = call.integers("strides", kernel)
    pads = _padding(call, x, kernel, strides)
    over = _overhang(call, x, kernel, strides, pads)
    is_max = call.op == "max_pool"
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    if is_max:
        return pool(F.pad(x, _backward(over), value=float("-inf")), kernel, strides)
    counted = torch.ones_like(x)
    if not call.flag("exclude_padding_from_average"):
        counted = F.pad(counted, _backward(pads), value=1.0)
        over_counted = [a - b for a, b in zip(over, pads, strict=True)]
    else:
        over_counted = over
    counted = F.pad(counted, _backward(over_counted))
    return mean(F.pad(x, _backward(over)), kernel, strides) / mean(counted, kernel, strides)


def _overhang(call: Call, x: Tensor, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> list[int]:
    """The padding, with what the last window needs beyond it where sizes are rounded up."""
    found = list(pads)
    if not call.flag("ceil_mode"):
        return found
    for dim, (window, step) in enumerate(zip(kernel, strides, strict=True)):
        size = x.shape[2 + dim] + pads[2 * dim] + pads[2 * dim + 1]
        n_windows = -(-(size - window) // step) + 1
        if (n_windows - 1) * step >= x.shape[2 + dim] + pads[2 * dim]:
            n_windows -= 1
        found[2 * dim + 1] += max(0, (n_windows - 1) * step + window - size)
    return found


# -- normalisation -------------------------------------------------------------------------------------------------


@rule("batch_norm")
def _batch_norm(call: Call) -> Tensor:
    statistics = call["mean"], call["variance"]
    return F.batch_norm(
        call["x"], *statistics, call.maybe("gamma"), call.maybe("beta"), eps=call.number("epsilon", 1e-5)
    )


@rule("instance_norm")
def _instance_norm(call: Call) -> Tensor:
    given = call.maybe("gamma"), call.maybe("beta")
    return F.instance_norm(call["x"], None, None, *given, eps=call.number("epsilon", 1e-5))


@rule("layer_norm")
def _layer_norm(call: Call) -> Tensor:
    x = call["x"]
    axes = sorted(axis % x.dim() for axis in call.integers("axes", range(x.dim())))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    shape = [size if dim in axes else 1 for dim, size in enumerate(x.shape)]
    gamma, beta = call.maybe("gamma"), call.maybe("beta")
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


@rule("l2_norm")
def _l2_norm(call: Call) -> Tensor:
    """Over the last three dims."""
    x = call["x"]
    dims = tuple(range(max(0, x.dim() - 3), x.dim()))
    return x * torch.rsqrt((x * x).sum(dims, keepdim=True) + call.number("epsilon", 1e-6))


@rule("softmax")
def _softmax(call: Call) -> Tensor:
    return torch.softmax(call["x"], call.integers("axis", [-1])[0])


# -- reductions ----------------------------------------------------------------------------------------------------

_REDUCTIONS = {
    "reduce_mean": torch.mean,
    "reduce_sum": torch.sum,
    "reduce_max": torch.amax,
    "reduce_min": torch.amin,
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_l1_norm": lambda x, axes, keepdim: x.abs().sum(axes, keepdim=keepdim),
    "reduce_l2_norm": lambda x, axes, keepdim: (x * x).sum(axes, keepdim=keepdim).sqrt(),
    "reduce_sum_square": lambda x, axes, keepdim: (x * x).sum(axes, keepdim=keepdim),
    "reduce_log_sum": lambda x, axes, keepdim: x.sum(axes, keepdim=keepdim).log(),
}


def _reduced(call: Call) -> Tensor:
    x = call["x"]
    axes = call.integers("axes", range(x.dim()))
    return _REDUCTIONS[call.op](x, tuple(axes), keepdim=call.flag("keep_dims"))  # type: ignore[operator]


RULES.update(dict.fromkeys(_REDUCTIONS, _reduced))


@rule("reduce_argmax", "reduce_argmin")
def _arg(call: Call) -> Tensor:
    function = torch.argmax if call.op == "reduce_argmax" else torch.argmin
    return function(call["x"], call.integers("axis", [-1])[0], keepdim=call.flag("keep_dims"))


@rule("cumsum")
def _cumsum(call: Call) -> Tensor:
    if call.flag("exclusive") or call.flag("reverse"):
        raise InputError("cumsum from the end, or without its own place, is not known")
    return torch.cumsum(call["x"], call.integers("axis", [0])[0])


@rule("topk")
def _topk(call: Call) -> Sequence[Tensor]:
    k, axis = call.integers("k", [1])[0], call.integers("axis", [-1])[0]
    return tuple(torch.topk(call["x"], k, axis, largest=not call.flag("ascending")))


# -- attention and recurrence --------------------------------------------------------------------------------------


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Tensor:
    mask = call.maybe("attn_mask")
    return F.scaled_dot_product_attention(call["query"], call["key"], call["value"], attn_mask=mask)


_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


@rule("lstm")
def _lstm(call: Call) -> Sequence[Tensor]:
    """`x` is `(steps, batch, inputs)`; the gates stand in the order input, forget, output, cell."""
    if call.has("peephole") or call.has("clip"):
        raise InputError("lstm with peephole or clip is not known")
    direction, x = call.text("direction", "forward"), call["x"]
    both = direction == "bidirectional"
    width = call["weight_hh"].shape[1]
    ways = [("", direction == "reverse")] + ([("_back", True)] if both else [])
    found = []
    for place, (suffix, backward) in enumerate(ways):
        start = [call[name][:, place * width : (place + 1) * width] for name in ("initial_h", "initial_c")]
        steps, hidden, cell = _one_way(call, x.flip(0) if backward else x, suffix, start[0], start[1])
        found.append((steps.flip(0) if backward else steps, hidden, cell))
    outputs, hiddens, cells = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    if not call.flag("output_sequence"):
        outputs = hiddens.unsqueeze(0)
    return outputs, hiddens, cells


def _one_way(call: Call, x: Tensor, suffix: str, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All steps `(steps, batch, width)`, and the last hidden and cell values."""
    w_ih, w_hh, bias = (call.maybe(f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias"))
    assert w_ih is not None and w_hh is not None
    names = (("recurrent_activation", "sigmoid"), ("cell_activation", "tanh"), ("activation", "tanh"))
    inner, of_cell, outer = (_ACTIVATIONS[call.text(*name)] for name in names)
    steps = []
    for step in F.linear(x, w_ih, bias):
        into, forget, out, new = (step + F.linear(hidden, w_hh)).chunk(4, -1)
        cell = inner(forget) * cell + inner(into) * of_cell(new)
        hidden = inner(out) * outer(cell)
        steps.append(hidden)
    return torch.stack(steps), hidden, cell


@rule("rnn")
def _rnn(call: Call) -> Sequence[Tensor]:
    """`x` is `(steps, batch, inputs)`; one way, forward or back."""
    is_backward, hidden = call.text("direction", "forward") == "reverse", call["initial_h"]
    x, activation = call["x"], _ACTIVATIONS[call.text("activation", "tanh")]
    steps = []
    for step in F.linear(x.flip(0) if is_backward else x, call["weight_ih"], call.maybe("bias")):
        hidden = activation(step + F.linear(hidden, call["weight_hh"]))
        steps.append(hidden)
    outputs = torch.stack(steps)
    if not call.flag("output_sequence"):
        return hidden.unsqueeze(0), hidden
    return outputs.flip(0) if is_backward else outputs, hidden
