"""One tiny network for every rule, with the number of units that can be removed by hand count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Case, Net, Shared, TiedAutoencoder, cnn, image_mlp, mlp, parameter, residual

IMAGE = (3, 8, 8)


def conv(n_in: int, n_out: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, k, padding=k // 2, **options)


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))


def between(middle: Any, width: int = 8, after: int | None = None, **parts: Any) -> nn.Module:
    """conv(3 -> width), `middle(m, x)`, global mean, linear from `after` channels."""
    return Net(
        lambda m, x: pooled(m, middle(m, m.first(x))),
        first=conv(3, width),
        head=nn.Linear(after or width, 4),
        **parts,
    )


def tokens(middle: Any, width: int = 8, after: int | None = None, **parts: Any) -> nn.Module:
    """linear(5 -> width) on each of 6 tokens, `middle(m, x)`, linear to 4."""
    return Net(
        lambda m, x: m.head(middle(m, m.first(x))),
        first=nn.Linear(5, width),
        head=nn.Linear(after or width, 4),
        **parts,
    )


TOKENS = (6, 5)


def heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def by_hand(m: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(part, 4) for part in (m.q(x), m.k(x), m.v(x)))
    weights = ((q @ k.transpose(-2, -1)) * 3**-0.5).softmax(-1)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


def fused(m: Any, x: Tensor) -> Tensor:
    qkv = m.qkv(x).reshape(x.shape[0], x.shape[1], 3, 4, 3).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 12))


def flat_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(part, 4).flatten(0, 1) for part in m.qkv(x).chunk(3, -1))
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    return m.out(torch.bmm(weights, v).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2))


def linear_attention(m: Any, x: Tensor) -> Tensor:
    """4 heads of 3 channels over a grouped convolution; the values carry a constant one that sums up the weights."""
    x = m.qkv(x)
    x = torch.cat([x, m.mix(m.near(x))], 1).unflatten(1, (8, 9)).flatten(3).transpose(-1, -2)
    q, k, v = x.chunk(3, -1)
    v = F.pad(v, (0, 1), value=1.0)
    both = q.relu() @ (k.relu().transpose(-1, -2) @ v)
    return m.out((both[..., :-1] / (both[..., -1:] + 1)).transpose(-1, -2).flatten(1, 2).unflatten(-1, (8, 8)))


def outlook_attention(m: Any, x: Tensor) -> Tensor:
    """4 heads of 2 channels over windows of 9 positions, folded again."""
    v = F.unfold(m.v(x), 3, padding=1).unflatten(1, (4, 2, 9)).permute(0, 1, 4, 3, 2)
    weights = m.a(x).flatten(2).unflatten(1, (4, 9, 9)).permute(0, 1, 4, 2, 3).softmax(-1)
    return F.fold((weights @ v).permute(0, 1, 4, 3, 2).flatten(1, 3), (8, 8), 3, padding=1)


def without_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.a(x).relu()


def attends_and_joins(m: Any, x: Tensor) -> Tensor:
    """Values with a column of ones for each head, by hand."""
    q, k, v = (heads(part, 4) for part in m.qkv(x).chunk(3, -1))
    v = torch.cat([v, v.new_ones(v.shape[0], 4, v.shape[2], 1)], -1)
    both = (q @ k.transpose(-2, -1)).sigmoid() @ v
    return m.out((both[..., :-1] / both[..., -1:]).transpose(1, 2).flatten(2))


def zeroed_bias(m: Any, x: Tensor) -> Tensor:
    bias = m.b.clone()
    bias[2:5].zero_()
    return F.linear(x, m.w, bias)


def standardised(m: Any, x: Tensor) -> Tensor:
    dims = (1, 2, 3)
    return F.conv2d(x, (m.w - m.w.mean(dims, keepdim=True)) / (m.w.std(dims, keepdim=True) + 1))


def attends_to_itself(m: Any, x: Tensor) -> Tensor:
    return m.mha(x, x, x, need_weights=False)[0]


def adds_constants(m: Any, x: Tensor) -> Tensor:
    return m.second(x + torch.full((8, 1, 1), 0.3) + x.new_ones(8, 1, 1) + torch.ones_like(x))


def split_in_parts(m: Any, x: Tensor) -> Tensor:
    one, other = x.split(4, 1)
    return m.a(one) + m.b(other)


def few_heads() -> dict[str, nn.Module]:
    """4 query heads and 2 of keys and values, 3 channels each."""
    return {"q": nn.Linear(8, 12), "k": nn.Linear(8, 6), "v": nn.Linear(8, 6), "out": nn.Linear(12, 8)}


def grouped_queries(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    return m.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def repeated_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def expanded_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    k, v = (t.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def cosine(m: Any, x: Tensor) -> Tensor:
    q, k, v = (heads(part, 4) for part in (m.q(x), m.k(x), m.v(x)))
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1)
    return m.out((weights @ v).transpose(1, 2).flatten(2))


def shuffled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return m.second(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def inplace(m: Any, x: Tensor) -> Tensor:
    x = F.relu(x, inplace=True)
    x += 1.0
    x *= m.scale.view(1, -1, 1, 1)
    x.clamp_(max=3.0)
    return m.second(x)


def writes_into_view(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0] = y[:, :, 1] * 2
    y[:, :, :, 2].mul_(0.5)
    return m.second(y)


def masked_window(m: Any, x: Tensor) -> Tensor:
    mask = x.new_zeros((8, 8))
    mask[:3, 2:] = 1.0
    mask[5] += 2.0
    return m.second(x * mask)


def two_outputs(m: Any, x: Tensor) -> Any:
    y = m.first(x).relu()
    return {"pooled": m.head(y.mean((2, 3))), "dense": (m.dense(y), y.sum())}


def projections() -> dict[str, nn.Module]:
    return {"q": nn.Linear(8, 12), "k": nn.Linear(8, 12), "v": nn.Linear(8, 12), "out": nn.Linear(12, 8)}


CASES: dict[str, Case] = {
    # dense layers
    "mlp": Case(mlp, ((8,),), 22),
    "mlp inputs": Case(mlp, ((8,),), 30, label_inputs=True),
    "image mlp inputs": Case(image_mlp, ((1, 4, 4),), 28, label_inputs=True),
    "bias only adds": Case(lambda: tokens(lambda m, x: (x + m.b).relu(), b=parameter(8)), (TOKENS,), 8),
    "bilinear form": Case(lambda: tokens(lambda m, x: x @ m.w, w=parameter(8, 8)), (TOKENS,), 16),
    "addmm": Case(
        lambda: Net(
            lambda m, x: m.head(torch.addmm(m.b, m.first(x), m.w)),
            first=nn.Linear(5, 8), w=parameter(8, 6), b=parameter(6), head=nn.Linear(6, 3),
        ), ((5,),), 14),
    "mv": Case(lambda: Net(lambda m, x: torch.mv(m.first(x), m.w), first=nn.Linear(5, 8), w=parameter(8)), ((5,),), 8),
    "einsum": Case(
        lambda: tokens(lambda m, x: torch.einsum("ntc,cd->ndt", x, m.w).transpose(1, 2), w=parameter(8, 8)), (TOKENS,),
        16),
    "embedding": Case(
        lambda: Net(
            lambda m, x: m.head(m.table((x.abs() * 3).long().clamp(max=8)).mean(1)),
            table=nn.Embedding(9, 8), head=nn.Linear(8, 3),
        ), ((6,),), 8),
    "tied": Case(TiedAutoencoder, ((8,),), 0),
    "shared": Case(Shared, ((5,),), 6),
    # convolutions
    "cnn": Case(cnn, (IMAGE,), 20),
    "cnn input channels": Case(cnn, (IMAGE,), 23, label_inputs=True),
    "residual": Case(residual, (IMAGE,), 24),
    "depthwise": Case(lambda: between(lambda m, x: m.dw(x), dw=conv(8, 8, groups=8)), (IMAGE,), 8),
    "depth multiplier": Case(lambda: between(lambda m, x: m.dw(x), after=16, dw=conv(8, 16, groups=8)), (IMAGE,), 8),
    "whole groups": Case(lambda: between(lambda m, x: m.g(x), after=4, g=conv(8, 4, groups=4)), (IMAGE,), 4),
    "offset in groups": Case(lambda: between(lambda m, x: m.g(x), g=conv(8, 8, groups=2)), (IMAGE,), 8),
    "conv1d": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)).mean(2), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 3)), ((3, 9),), 8),
    "conv1d over rows of channels": Case(
        lambda: tokens(lambda m, x: m.join(torch.stack([x.mean(1), x.amax(1)], 1)), join=nn.Conv1d(2, 1, 1)),
        (TOKENS,), 8),
    "conv3d": Case(
        lambda: Net(lambda m, x: m.b(m.a(x)).mean((2, 3, 4)), a=nn.Conv3d(3, 8, 3), b=nn.Conv3d(8, 4, 1)),
        ((3, 4, 4, 4),), 8),
    "transposed": Case(
        lambda: between(lambda m, x: m.up(x), after=6, up=nn.ConvTranspose2d(8, 6, 2, stride=2)), (IMAGE,), 14),
    "transposed depthwise": Case(
        lambda: between(lambda m, x: m.up(x), up=nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)), (IMAGE,), 8),
    "transposed groups": Case(
        lambda: between(lambda m, x: m.up(x), after=6, up=nn.ConvTranspose2d(8, 6, 2, groups=2)), (IMAGE,), 7),
    "standardised": Case(
        lambda: between(
            standardised, after=6, w=parameter(6, 8, 3, 3),
        ), (IMAGE,), 6),
    "squeeze-excite": Case(
        lambda: between(
            lambda m, x: x * m.e(m.s(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid(), s=conv(8, 4, 1), e=conv(4, 8, 1)
        ), (IMAGE,), 12),
    "concatenation": Case(
        lambda: between(lambda m, x: m.c(torch.cat([x, m.b(x).relu()], 1)), after=5, b=conv(8, 6), c=conv(14, 5)),
        (IMAGE,), 19),
    "flatten to linear": Case(
        lambda: Net(lambda m, x: m.fc(m.a(x).relu().flatten(1)), a=conv(3, 8), fc=nn.Linear(8 * 64, 3)), (IMAGE,), 8),
    # normalisation
    "batch norm bare": Case(
        lambda: between(lambda m, x: m.n(x).relu(), n=nn.BatchNorm2d(8, affine=False)), (IMAGE,), 8),
    "batch norm of the batch": Case(
        lambda: between(lambda m, x: m.n(x).relu(), n=nn.BatchNorm2d(8, track_running_stats=False)), (IMAGE,), 8),
    "batch norm 1d": Case(lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), ((5,),), 8),
    "instance norm": Case(
        lambda: between(lambda m, x: m.n(x).relu(), n=nn.InstanceNorm2d(8, affine=True)), (IMAGE,), 8),
    "layer norm": Case(lambda: tokens(lambda m, x: m.n(x), n=nn.LayerNorm(8)), (TOKENS,), 8, exact=False),
    "layer norm bare": Case(
        lambda: tokens(lambda m, x: m.n(x), n=nn.LayerNorm(8, elementwise_affine=False)), (TOKENS,), 8, exact=False),
    "layer norm and a divisor": Case(
        lambda: tokens(lambda m, x: m.n(x / 2) / m.s, n=nn.LayerNorm(8), s=parameter(8)), (TOKENS,), 8, exact=False),
    "rms norm": Case(lambda: tokens(lambda m, x: m.n(x), n=nn.RMSNorm(8)), (TOKENS,), 8, exact=False),
    "layer norm after": Case(
        lambda: tokens(lambda m, x: m.n(m.b(m.a(x).relu())), a=nn.Linear(8, 6), b=nn.Linear(6, 8), n=nn.LayerNorm(8)),
        (TOKENS,), 22, exact=False),
    "group norm": Case(lambda: between(lambda m, x: m.n(x), n=nn.GroupNorm(4, 8)), (IMAGE,), 4),
    "group norm of one": Case(lambda: between(lambda m, x: m.n(x), n=nn.GroupNorm(1, 8)), (IMAGE,), 8, exact=False),
    # pooling and resampling
    "max pool": Case(lambda: between(lambda m, x: F.max_pool2d(x, 2)), (IMAGE,), 8),
    "max pool with indices": Case(
        lambda: between(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]), (IMAGE,), 8),
    "avg pool": Case(lambda: between(lambda m, x: F.avg_pool2d(x, 3, padding=1)), (IMAGE,), 8),
    "adaptive avg pool": Case(lambda: between(lambda m, x: F.adaptive_avg_pool2d(x, 2)), (IMAGE,), 8),
    "adaptive max pool": Case(lambda: between(lambda m, x: F.adaptive_max_pool2d(x, 2)), (IMAGE,), 8),
    "interpolate": Case(lambda: between(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear")), (IMAGE,), 8),
    "reflection pad": Case(lambda: between(lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect")), (IMAGE,), 8),
    "zero pad": Case(lambda: between(lambda m, x: F.pad(x, (1, 1, 1, 1))), (IMAGE,), 8),
    # data movement
    "channel shuffle": Case(lambda: between(shuffled, second=conv(8, 8)), (IMAGE,), 16),
    "channel shuffle module": Case(
        lambda: between(lambda m, x: m.second(m.shuffle(x)), shuffle=nn.ChannelShuffle(2), second=conv(8, 8)),
        (IMAGE,), 16),
    "pixel shuffle": Case(lambda: between(lambda m, x: F.pixel_shuffle(x, 2), after=2), (IMAGE,), 2),
    "pixel unshuffle": Case(lambda: between(lambda m, x: F.pixel_unshuffle(x, 2), after=32), (IMAGE,), 8),
    "chunk": Case(lambda: between(lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], after=4), (IMAGE,), 4),
    "split": Case(lambda: between(lambda m, x: torch.cat(x.split([3, 5], 1)[::-1], 1)), (IMAGE,), 8),
    "split in parts": Case(
        lambda: between(split_in_parts, after=5, a=conv(4, 5), b=conv(4, 5)), (IMAGE,), 13),
    "unbind": Case(
        lambda: between(lambda m, x: torch.stack(x.unflatten(1, (2, 4)).unbind(1), 2).flatten(1, 2), after=8), (IMAGE,),
        4),
    "slices": Case(lambda: between(lambda m, x: torch.cat([x[:, 1::2], x[:, :3], x[:, 4:]], 1), after=11), (IMAGE,), 8),
    "select a row": Case(lambda: between(lambda m, x: x[:, :, 2].unsqueeze(2)), (IMAGE,), 8),
    "roll positions": Case(lambda: between(lambda m, x: x.roll((1, -2), (2, 3))), (IMAGE,), 8),
    "roll channels": Case(lambda: between(lambda m, x: m.second(x.roll(3, 1)), second=conv(8, 8)), (IMAGE,), 16),
    "flip": Case(lambda: between(lambda m, x: m.second(x.flip(1, 3)), second=conv(8, 8)), (IMAGE,), 16),
    "repeat": Case(lambda: between(lambda m, x: x.repeat(1, 2, 1, 1), after=16), (IMAGE,), 8),
    "repeat interleave": Case(lambda: between(lambda m, x: x.repeat_interleave(2, 1), after=16), (IMAGE,), 8),
    "expand": Case(lambda: tokens(lambda m, x: x.mean(1, keepdim=True).expand(-1, 6, 8)), (TOKENS,), 8),
    "part without autocast": Case(lambda: between(without_autocast, a=conv(8, 6), after=6), (IMAGE,), 14),
    "expand a parameter": Case(
        lambda: tokens(lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1), cls=parameter(1, 1, 8)),
        (TOKENS,), 8),
    "index": Case(lambda: between(lambda m, x: x[:, [5, 0, 0, 3]], after=4), (IMAGE,), 8),
    "index select": Case(
        lambda: between(lambda m, x: x.index_select(1, m.i), after=8, i=torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])),
        (IMAGE,), 8),
    "unfold": Case(lambda: between(lambda m, x: F.unfold(x, 2).unsqueeze(-1), after=32), (IMAGE,), 8),
    "movedim": Case(
        lambda: between(lambda m, x: m.l(x.movedim(1, -1)).movedim(-1, 1), l=nn.Linear(8, 8)), (IMAGE,), 16),
    "meshgrid": Case(
        lambda: between(lambda m, x: m.second(x + torch.stack(torch.meshgrid(
            torch.arange(8.0, dtype=x.dtype), torch.arange(8.0, dtype=x.dtype), indexing="ij")).sum(0)),
            second=conv(8, 8)), (IMAGE,), 16),
    # pointwise
    "gated": Case(lambda: tokens(lambda m, x: F.silu(m.g(x)) * m.u(x), 8, 6, g=nn.Linear(8, 6), u=nn.Linear(8, 6)),
                  (TOKENS,), 14),
    "glu": Case(lambda: between(lambda m, x: F.glu(x, 1), after=4), (IMAGE,), 4),
    "prelu": Case(lambda: between(lambda m, x: m.act(x), act=nn.PReLU(8)), (IMAGE,), 8),
    "dropout": Case(lambda: between(lambda m, x: F.dropout2d(F.dropout(x, 0.5, m.training), training=m.training)),
                    (IMAGE,), 8),
    "dropout in place": Case(
        lambda: nn.Sequential(conv(3, 8), nn.Dropout(0.3, inplace=True), nn.Dropout2d(0.3, inplace=True), conv(8, 2)),
        (IMAGE,), 8),
    "in place": Case(lambda: between(inplace, scale=parameter(8), second=conv(8, 8)), (IMAGE,), 16),
    "writes into views": Case(lambda: between(writes_into_view, second=conv(8, 8)), (IMAGE,), 16),
    "zeroes a part of a parameter": Case(
        lambda: tokens(zeroed_bias, w=parameter(8, 8), b=parameter(8)), (TOKENS,), 16),
    "constant mask": Case(lambda: between(masked_window, second=conv(8, 8)), (IMAGE,), 16),
    "factories": Case(
        lambda: between(adds_constants, second=conv(8, 8)), (IMAGE,), 16),
    "masked fill": Case(
        lambda: between(lambda m, x: m.second(x.masked_fill(x > 1, 0.25)), second=conv(8, 8)), (IMAGE,), 16),
    "where": Case(
        lambda: between(lambda m, x: m.second(torch.where(x > 0, x, m.slope.view(8, 1, 1) * x)), slope=parameter(8),
                        second=conv(8, 8)), (IMAGE,), 16),
    "layer scale": Case(
        lambda: tokens(lambda m, x: x + m.gamma * m.b(x), b=nn.Linear(8, 8), gamma=parameter(8)), (TOKENS,), 8),
    "buffer as value": Case(
        lambda: between(lambda m, x: m.second((x - m.mean) / m.std), second=conv(8, 8), mean=torch.ones(8, 1, 1),
                        std=torch.ones(1, 8, 1, 1)), (IMAGE,), 16),
    "maximum": Case(lambda: between(lambda m, x: torch.maximum(x, m.b(x)), b=conv(8, 8)), (IMAGE,), 8),
    # reductions
    "mean over channels": Case(lambda: between(lambda m, x: m.second(x * x.mean(1, keepdim=True)), second=conv(8, 8)),
                               (IMAGE,), 16),
    "sum over channels": Case(lambda: between(lambda m, x: x.relu().sum(1, keepdim=True), after=1), (IMAGE,), 8),
    "amax over positions": Case(lambda: between(lambda m, x: x.amax((2, 3), keepdim=True)), (IMAGE,), 8),
    "softmax over positions": Case(lambda: between(lambda m, x: x * x.flatten(2).softmax(-1).view_as(x)), (IMAGE,), 8),
    "norm over channels": Case(
        lambda: between(lambda m, x: m.second(F.normalize(x, dim=1)), second=conv(8, 8)), (IMAGE,), 16),
    "baddbmm": Case(
        lambda: Net(
            lambda m, x: m.head(torch.baddbmm(m.b, m.first(x), m.w.expand(x.shape[0], -1, -1))),
            first=nn.Linear(5, 8), w=parameter(1, 8, 6), b=parameter(1, 1, 6), head=nn.Linear(6, 3),
        ), (TOKENS,), 14),
    "fold": Case(
        lambda: between(lambda m, x: F.fold(F.unfold(x, 2, stride=2) * 2, (8, 8), 2, stride=2)), (IMAGE,), 8),
    "cumsum over tokens": Case(lambda: tokens(lambda m, x: x.cumsum(1)), (TOKENS,), 8),
    # attention: 4 heads of 3 channels
    "attention": Case(lambda: tokens(by_hand, **projections()), (TOKENS,), 20),
    "fused attention": Case(lambda: tokens(fused, qkv=nn.Linear(8, 36), out=nn.Linear(12, 8)), (TOKENS,), 20),
    "bmm attention": Case(lambda: tokens(flat_heads, qkv=nn.Linear(8, 36), out=nn.Linear(12, 8)), (TOKENS,), 20),
    "multi-head attention": Case(
        lambda: tokens(attends_to_itself, mha=nn.MultiheadAttention(8, 4, batch_first=True)),
        (TOKENS,), 20),
    "transformer layer": Case(
        lambda: tokens(lambda m, x: m.l(x), l=nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)), (TOKENS,), 28,
        exact=False),
    "grouped queries": Case(lambda: tokens(grouped_queries, **few_heads()), (TOKENS,), 18),
    "grouped queries by repeating": Case(lambda: tokens(repeated_heads, **few_heads()), (TOKENS,), 18),
    "grouped queries by expanding": Case(lambda: tokens(expanded_heads, **few_heads()), (TOKENS,), 18),
    "linear attention": Case(
        lambda: between(
            linear_attention, qkv=conv(8, 36), near=conv(36, 36, groups=36), mix=conv(36, 36, 1, groups=12),
            out=conv(24, 8),
        ), (IMAGE,), 20),
    "outlook attention": Case(
        lambda: between(outlook_attention, v=conv(8, 8, 1), a=conv(8, 324, 1)), (IMAGE,), 12),
    "joined with nothing": Case(
        lambda: tokens(lambda m, x: torch.cat([x[:, :0], m.b(x[:, 0:])], 1), b=nn.Linear(8, 8)), (TOKENS,), 16),
    "attention with a column of ones": Case(
        lambda: tokens(attends_and_joins, qkv=nn.Linear(8, 36), out=nn.Linear(12, 8)), (TOKENS,), 20),
    "cosine attention": Case(lambda: tokens(cosine, **projections()), (TOKENS,), 20),
    # several inputs, several outputs
    "two inputs": Case(
        lambda: Net(lambda m, x, y: m.head(m.a(x).relu() + m.b(y)), a=nn.Linear(5, 8), b=nn.Linear(4, 8),
                    head=nn.Linear(8, 3)), ((5,), (4,)), 8),
    "two inputs labelled": Case(
        lambda: Net(lambda m, x, y: m.head(m.a(x).relu() + m.b(y)), a=nn.Linear(5, 8), b=nn.Linear(4, 8),
                    head=nn.Linear(8, 3)), ((5,), (4,)), 17, label_inputs=True),
    "several outputs": Case(
        lambda: Net(two_outputs, first=conv(3, 8), head=nn.Linear(8, 3), dense=conv(8, 2)), (IMAGE,), 8),
}  # fmt: skip

ACTIVATIONS = (
    nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU,
    nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Identity,
)  # fmt: skip
