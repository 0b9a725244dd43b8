"""Layers for random networks: each makes a module for values of a given shape, or None where it does not fit.

Shapes are without the batch: `(features,)`, `(channels, length)` or `(tokens, channels)`, `(channels, height, width)`.
A choice comes from a `random.Random`; Hypothesis has one that it can shrink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Net, parameter

Shape = tuple[int, ...]
Layer = Callable[[Random, Shape], nn.Module | None]

PADDINGS = ("zeros", "reflect", "replicate", "circular")
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Hardswish, nn.Softplus, nn.LeakyReLU)


def width(draw: Random, divisor: int = 1) -> int:
    return divisor * draw.randint(max(1, 2 // divisor), max(1, 8 // divisor))


def divisors(*sizes: int) -> list[int]:
    return [n for n in range(1, min(sizes) + 1) if all(size % n == 0 for size in sizes)]


# -- maps -------------------------------------------------------------------------------------------------------------


def linear(draw: Random, shape: Shape) -> nn.Module | None:
    """Over the last dim, or any other one by a swap."""
    dim = draw.randint(1, len(shape))
    layer = nn.Linear(shape[dim - 1], width(draw), bias=draw.random() < 0.8)
    if dim == len(shape):
        return Net(lambda m, x: m.linear(x), linear=layer)
    return Net(lambda m, x: m.linear(x.transpose(dim, -1)).transpose(dim, -1), linear=layer)


def convolution(draw: Random, shape: Shape) -> nn.Module | None:
    """1d or 2d by the rank; stride, dilation, groups and every mode of padding."""
    spatial = len(shape) - 1
    if spatial not in (1, 2):
        return None
    kind, kernel, dilation = (nn.Conv1d, nn.Conv2d)[spatial - 1], draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2))
    groups = draw.choice((1, 1, draw.choice(divisors(shape[0]))))
    reach = dilation * (kernel - 1)
    padding = draw.choice((0, reach // 2, "same")) if kernel > 1 else 0
    stride = 1 if padding == "same" else draw.choice((1, 1, 2))
    if min(shape[1:]) <= reach or (isinstance(padding, int) and padding >= min(shape[1:])):
        return None
    mode = draw.choice(PADDINGS) if padding != 0 else "zeros"
    layer = kind(shape[0], width(draw, groups), kernel, stride, padding, dilation, groups, draw.random() < 0.7, mode)
    return Net(lambda m, x: m.conv(x), conv=layer)


def depthwise(draw: Random, shape: Shape) -> nn.Module | None:
    """As many groups as channels, and one or two outputs for each."""
    spatial = len(shape) - 1
    if spatial not in (1, 2) or min(shape[1:]) < 3:
        return None
    kind, mode = (nn.Conv1d, nn.Conv2d)[spatial - 1], draw.choice(PADDINGS)
    layer = kind(shape[0], shape[0] * draw.choice((1, 1, 2)), 3, padding=1, groups=shape[0], padding_mode=mode)
    return Net(lambda m, x: m.depthwise(x), depthwise=layer)


def transposed_convolution(draw: Random, shape: Shape) -> nn.Module | None:
    spatial = len(shape) - 1
    if spatial not in (1, 2) or max(shape[1:]) > 9:
        return None
    groups, kind = draw.choice(divisors(shape[0])), (nn.ConvTranspose1d, nn.ConvTranspose2d)[spatial - 1]
    groups = draw.choice((1, groups))
    layer = kind(shape[0], width(draw, groups), draw.choice((2, 3)), draw.choice((1, 2)), groups=groups)
    return Net(lambda m, x: m.deconv(x), deconv=layer)


def attention(draw: Random, shape: Shape) -> nn.Module | None:
    """Of tokens to each other, by the module or by hand."""
    if len(shape) != 2:
        return None
    channels = shape[1]
    if draw.random() < 0.5:
        layer = nn.MultiheadAttention(channels, draw.choice(divisors(channels)), batch_first=True)
        return Net(lambda m, x: m.mha(x, x, x)[0], mha=layer)
    heads, size = draw.choice((1, 2, 3)), draw.choice((2, 3))
    fused = nn.Linear(channels, 3 * heads * size, bias=draw.random() < 0.5)

    def by_hand(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4).unbind(0)
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return Net(by_hand, qkv=fused, out=nn.Linear(heads * size, width(draw)))


def recurrent(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) != 2:
        return None
    kind, both = draw.choice((nn.LSTM, nn.GRU)), draw.random() < 0.3
    layer = kind(shape[1], draw.randint(2, 4), batch_first=True, bidirectional=both)
    return Net(lambda m, x: m.rnn(x)[0], rnn=layer)


def gated(draw: Random, shape: Shape) -> nn.Module | None:
    """A gated linear unit: by halves of one layer, or by a second one."""
    n = width(draw)
    if draw.random() < 0.5:
        return Net(lambda m, x: F.glu(m.both(x), -1), both=nn.Linear(shape[-1], 2 * n))
    return Net(lambda m, x: F.silu(m.gate(x)) * m.up(x), gate=nn.Linear(shape[-1], n), up=nn.Linear(shape[-1], n))


def squeeze_excite(draw: Random, shape: Shape) -> nn.Module | None:
    """Channels weighted by what their means say."""
    if len(shape) < 2:
        return None
    places = tuple(range(2, len(shape) + 1))
    inner = draw.randint(2, 5)

    def weigh(m: Any, x: Tensor) -> Tensor:
        scale = m.up(F.relu(m.down(x.mean(places)))).sigmoid()
        return x * scale.reshape(*scale.shape, *[1] * len(places))

    return Net(weigh, down=nn.Linear(shape[0], inner), up=nn.Linear(inner, shape[0]))


def own_parameters(draw: Random, shape: Shape) -> nn.Module | None:
    """Scaled or shifted by a parameter along some of its dims."""
    sizes = [size if draw.random() < 0.7 else 1 for size in shape]
    own = parameter(*sizes)
    return Net(lambda m, x: x * m.own, own=own) if draw.random() < 0.5 else Net(lambda m, x: x + m.own, own=own)


# -- normalisations and functions -------------------------------------------------------------------------------------


def batch_norm(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) > 3:
        return None
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) - 1]
    return Net(lambda m, x: m.norm(x), norm=kind(shape[0], affine=draw.random() < 0.8))


def layer_norm(draw: Random, shape: Shape) -> nn.Module | None:
    over = list(shape[-draw.choice((1, 1, len(shape))) :])
    if math.prod(over) < 2:
        return None
    kind, affine = draw.choice((nn.LayerNorm, nn.RMSNorm)), draw.random() < 0.8
    return Net(lambda m, x: m.norm(x), norm=kind(over, elementwise_affine=affine))


def group_norm(draw: Random, shape: Shape) -> nn.Module | None:
    groups = draw.choice(divisors(shape[0]))
    if math.prod(shape) // groups < 2:
        return None
    return Net(lambda m, x: m.norm(x), norm=nn.GroupNorm(groups, shape[0], affine=draw.random() < 0.8))


def instance_norm(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) not in (2, 3) or math.prod(shape[1:]) < 2:
        return None
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d)[len(shape) - 2]
    return Net(lambda m, x: m.norm(x), norm=kind(shape[0], affine=draw.random() < 0.5))


def activation(draw: Random, shape: Shape) -> nn.Module | None:
    if draw.random() < 0.1:
        return Net(lambda m, x: m.act(x), act=nn.PReLU(draw.choice((1, shape[0]))))
    kind = draw.choice(ACTIVATIONS)
    return Net(lambda m, x: m.act(x), act=kind())


def halves(draw: Random, shape: Shape) -> nn.Module | None:
    """One half of a dim gates the other."""
    even = [dim for dim, size in enumerate(shape, 1) if size % 2 == 0]
    if not even:
        return None
    dim = draw.choice(even)
    return Net(lambda m, x: F.glu(x, dim))


def softmax(draw: Random, shape: Shape) -> nn.Module | None:
    dim = draw.randint(1, len(shape))
    return Net(lambda m, x: x.softmax(dim))


def pooling(draw: Random, shape: Shape) -> nn.Module | None:
    spatial = len(shape) - 1
    if spatial not in (1, 2) or min(shape[1:]) < 2:
        return None
    kinds = ((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d), (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d))
    pool = draw.choice(kinds[spatial - 1])(2)
    return Net(lambda m, x: m.pool(x), pool=pool)


def reduction(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 2:
        return None
    dim, keep = draw.randint(1, len(shape)), draw.random() < 0.3
    name = draw.choice(("mean", "mean", "sum", "amax", "var"))
    if name == "var" and shape[dim - 1] < 2:
        return None
    return Net(lambda m, x: getattr(x, name)(dim=dim, keepdim=keep))


def upsampling(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) != 3 or max(shape[1:]) > 6:
        return None
    mode = draw.choice(("nearest", "bilinear"))
    return Net(lambda m, x: F.interpolate(x, scale_factor=2.0, mode=mode))


# -- movement ---------------------------------------------------------------------------------------------------------


def permutation(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) < 2:
        return None
    order = list(range(1, len(shape) + 1))
    draw.shuffle(order)
    return Net(lambda m, x: x.permute(0, *order))


def flattening(draw: Random, shape: Shape) -> nn.Module | None:
    """Of two dims that are neighbours, or all of them."""
    if len(shape) < 2:
        return None
    start = draw.randint(1, len(shape) - 1)
    end = draw.choice((start + 1, len(shape)))
    return Net(lambda m, x: x.flatten(start, end)) if math.prod(shape[start - 1 : end]) <= 72 else None


def unflattening(draw: Random, shape: Shape) -> nn.Module | None:
    dim = draw.randint(1, len(shape))
    parts = [n for n in divisors(shape[dim - 1]) if n > 1]
    if len(shape) > 2 or not parts:
        return None
    part = draw.choice(parts)
    return Net(lambda m, x: x.unflatten(dim, (part, -1)))


def slicing(draw: Random, shape: Shape) -> nn.Module | None:
    dim = draw.randint(1, len(shape))
    size = shape[dim - 1]
    start, step = draw.randint(0, size // 3), draw.choice((1, 1, 2))
    end = draw.randint(start + 1, size)
    if len(range(start, end, step)) < 2:
        return None
    index = (slice(None),) * dim + (slice(start, end, step),)
    return Net(lambda m, x: x[index])


def indexing(draw: Random, shape: Shape) -> nn.Module | None:
    """By a constant: some in another order, one alone, or all of them rolled or turned round."""
    dim = draw.randint(1, len(shape))
    size = shape[dim - 1]
    how = draw.choice(("index", "index_select", "select", "roll", "flip"))
    if how == "select":
        chosen = draw.randrange(size)
        return Net(lambda m, x: x.select(dim, chosen)) if len(shape) > 1 else None
    if how in ("roll", "flip"):
        return Net(lambda m, x: x.roll(1, dim)) if how == "roll" else Net(lambda m, x: x.flip(dim))
    order = torch.tensor([draw.randrange(size) for _ in range(draw.randint(2, size + 1))])
    if how == "index":
        return Net(lambda m, x: x[(slice(None),) * dim + (m.order,)], order=order)
    return Net(lambda m, x: x.index_select(dim, m.order), order=order)


def shuffle(draw: Random, shape: Shape) -> nn.Module | None:
    """Of the channels, as ShuffleNet does."""
    groups = [n for n in divisors(shape[0]) if 1 < n < shape[0]]
    if not groups:
        return None
    n, rest = draw.choice(groups), shape[1:]
    return Net(lambda m, x: x.reshape(-1, n, shape[0] // n, *rest).transpose(1, 2).reshape(-1, shape[0], *rest))


def pad(draw: Random, shape: Shape) -> nn.Module | None:
    if len(shape) == 1 or draw.random() < 0.5:
        amounts = [draw.randint(-1, 2) for _ in range(2 * draw.randint(1, len(shape)))]
        sizes = [n + amounts[2 * k] + amounts[2 * k + 1] for k, n in enumerate(shape[::-1]) if 2 * k < len(amounts)]
        value = draw.choice((0.0, 0.0, 1.5))
        return Net(lambda m, x: F.pad(x, amounts, value=value)) if min(sizes) > 1 else None
    mode, n_dims = draw.choice(PADDINGS[1:]), len(shape) - 1
    if min(shape[1:]) < 2 or n_dims > 2:
        return None
    return Net(lambda m, x: F.pad(x, (1, 1) * n_dims, mode=mode))


def parts(draw: Random, shape: Shape) -> nn.Module | None:
    """Several values: chunks, a split into sizes, or one for each index."""
    dim = draw.randint(1, len(shape))
    size = shape[dim - 1]
    if size < 3:
        return None
    how = draw.choice(("chunk", "chunk", "split", "unbind"))
    if how == "chunk":
        return Net(lambda m, x: x.chunk(2, dim))
    if how == "split":
        first = draw.randint(1, size - 1)
        return Net(lambda m, x: x.split([first, size - first], dim))
    return Net(lambda m, x: x.unbind(dim)[:2]) if len(shape) > 1 else None


LAYERS: dict[str, tuple[int, Layer]] = {  # name -> how often, and what makes it
    layer.__name__: (weight, layer)
    for weight, layers in (
        (6, (linear, convolution)),
        (3, (depthwise, activation, layer_norm, parts, attention, batch_norm, gated)),
        (1, (transposed_convolution, recurrent, squeeze_excite, own_parameters, group_norm, instance_norm, halves,
             softmax, pooling, reduction, upsampling, permutation, flattening, unflattening, slicing, indexing,
             shuffle, pad)),
    )
    for layer in layers
}  # fmt: skip
