"""Attention in its many forms, with the units that can be removed by hand count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cases import heads
from tests.cases_more import image, later, token
from tests.nets import Case, parameter


def qkv(m: Any, x: Tensor, n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return heads(m.q(x), n), heads(m.k(x), n), heads(m.v(x), n)


def merged(m: Any, x: Tensor) -> Tensor:
    return m.out(x.transpose(1, 2).flatten(2))


PROJECTIONS = {"q": later(nn.Linear, 8, 12), "k": later(nn.Linear, 8, 12), "v": later(nn.Linear, 8, 12)}
PROJECTIONS["out"] = later(nn.Linear, 12, 8)


def attends(units: int = 28, /, **options: Any) -> Case:
    """4 heads of 3 channels by scaled-dot-product attention: 3 x 4 channels of queries and keys, 3 x 4 of values... as
    whole heads: 4 units, and 8 channels before, 8 after it, 8 of the last layer."""
    return token(
        lambda m, x: merged(
            m,
            F.scaled_dot_product_attention(
                *qkv(m, x), **{name: option(x) if callable(option) else option for name, option in options.items()}
            ),
        ),
        units,
        **PROJECTIONS,
    )


def mha(units: int, call: Any, /, **options: Any) -> Case:
    return token(call, units, mha=later(nn.MultiheadAttention, 8, 4, **{"batch_first": True} | options))


def bool_mask(x: Tensor) -> Tensor:
    return torch.ones(6, 6, dtype=torch.bool).tril()


def float_mask(x: Tensor) -> Tensor:
    return torch.zeros(6, 6, dtype=x.dtype).masked_fill(~bool_mask(x), float("-inf"))


def cross(m: Any, x: Tensor) -> Tensor:
    other = m.other(x)[:, :4]
    return m.mha(x, other, m.value(other), need_weights=False)[0]


def relative_bias(m: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(m, x)
    bias = m.table[m.index].permute(2, 0, 1)
    return merged(m, (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v)


def shared_bias(m: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(m, x)
    return merged(m, (q @ k.transpose(-2, -1) + m.bias).softmax(-1) @ v)


def talking_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(m, x)
    weights = m.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return merged(m, weights.softmax(-1) @ v)


def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = qkv(m, x)
    q, k = q.softmax(-1), k.softmax(-2)
    return merged(m, q @ (k.transpose(-2, -1) @ v))


def channel_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = (t.transpose(-2, -1) for t in qkv(m, x))
    return merged(m, ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(-2, -1))


def multi_query(m: Any, x: Tensor) -> Tensor:
    q, k, v = heads(m.q(x), 4), m.k(x).unsqueeze(1), m.v(x).unsqueeze(1)
    return merged(m, F.scaled_dot_product_attention(q, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1)))


def windows(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    q, k, v = m.qkv(x).view(-1, 16, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
    x = m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 12))
    return x.view(n, 2, 2, 4, 4, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, h, w)


def rotary(m: Any, x: Tensor) -> Tensor:
    def rotated(t: Tensor) -> Tensor:
        a, b = t.chunk(2, -1)
        return t * m.cos + torch.cat([-b, a], -1) * m.sin

    q, k, v = heads(m.q(x), 4), heads(m.k(x), 4), heads(m.v(x), 4)
    return merged(m, F.scaled_dot_product_attention(rotated(q), rotated(k), v))


CASES: dict[str, Case] = {
    "attention, causal": attends(is_causal=True),
    "attention, bool mask": attends(attn_mask=bool_mask),
    "attention, float mask": attends(attn_mask=float_mask),
    "attention, own scale": attends(scale=0.3),
    "attention, dropout": attends(dropout_p=0.0),
    "attention, relative bias": token(
        relative_bias,
        28,
        table=later(parameter, 11, 4),
        index=(torch.arange(6)[:, None] - torch.arange(6) + 5),
        **PROJECTIONS,
    ),
    "attention, bias of all heads": token(shared_bias, 28, bias=later(parameter, 4, 6, 6), **PROJECTIONS),
    "attention, talking heads": token(talking_heads, 32, mix=later(nn.Linear, 4, 4), **PROJECTIONS),
    "attention, linear": token(linear_attention, 28, **PROJECTIONS),
    "attention over channels": token(channel_attention, 28, **PROJECTIONS),
    "attention, one key": token(
        multi_query,
        30,
        q=later(nn.Linear, 8, 12),
        k=later(nn.Linear, 8, 3),
        v=later(nn.Linear, 8, 3),
        out=later(nn.Linear, 12, 8),
    ),
    "attention in windows": image(windows, 28, qkv=later(nn.Linear, 8, 36), out=later(nn.Linear, 12, 8)),
    "attention, rotary": token(
        rotary,
        30,
        q=later(nn.Linear, 8, 16),
        k=later(nn.Linear, 8, 16),
        v=later(nn.Linear, 8, 16),
        out=later(nn.Linear, 16, 8),
        cos=torch.rand(6, 4),
        sin=torch.rand(6, 4),
    ),
    "mha": mha(28, lambda m, x: m.mha(x, x, x, need_weights=False)[0]),
    "mha, with weights": mha(28, lambda m, x: m.mha(x, x, x)[0]),
    "mha, weights of each head": mha(28, lambda m, x: m.mha(x, x, x, average_attn_weights=False)[0]),
    "mha, weights used": mha(16, lambda m, x: m.mha(x, x, x)[1] @ x),
    "mha, no bias": mha(28, lambda m, x: m.mha(x, x, x)[0], bias=False),
    "mha, extra key": mha(28, lambda m, x: m.mha(x, x, x)[0], add_bias_kv=True),
    "mha, extra zeros": mha(24, lambda m, x: m.mha(x, x, x)[0], add_zero_attn=True),
    "mha, mask": mha(28, lambda m, x: m.mha(x, x, x, attn_mask=float_mask(x))[0]),
    "mha, causal": mha(28, lambda m, x: m.mha(x, x, x, attn_mask=~bool_mask(x), is_causal=True, need_weights=False)[0]),
    "mha, padding mask": mha(27, lambda m, x: m.mha(x, x, x, key_padding_mask=x[:, :, 0] > 9)[0]),
    "mha, time first": mha(28, lambda m, x: m.mha(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), batch_first=False),
    "mha, cross": token(
        cross,
        41,
        mha=later(nn.MultiheadAttention, 8, 4, kdim=6, vdim=7, batch_first=True),
        other=later(nn.Linear, 8, 6),
        value=later(nn.Linear, 6, 7),
    ),
    "encoder layer, norm first": token(
        lambda m, x: m.l(x),
        36,
        exact=False,
        l=later(nn.TransformerEncoderLayer, 8, 4, 16, 0.1, norm_first=True, batch_first=True),
    ),
    "encoder layer, gelu": token(
        lambda m, x: m.l(x),
        36,
        exact=False,
        l=later(nn.TransformerEncoderLayer, 8, 4, 16, 0.0, "gelu", batch_first=True),
    ),
    "encoder": token(
        lambda m, x: m.l(x),
        56,
        exact=False,
        l=later(
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 2, nn.LayerNorm(8))
        ),
    ),
    "encoder, causal": token(
        lambda m, x: m.l(x, mask=float_mask(x), is_causal=True),
        36,
        exact=False,
        l=later(
            lambda: nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), 1, enable_nested_tensor=False
            )
        ),
    ),
    "decoder": token(
        lambda m, x: m.l(x, x.sin()),
        40,
        exact=False,
        l=later(lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 4, 16, batch_first=True), 1)),
    ),
    "transformer": token(
        lambda m, x: m.l(x, x.sin()), 60, exact=False, l=later(nn.Transformer, 8, 4, 1, 1, 16, batch_first=True)
    ),
}
