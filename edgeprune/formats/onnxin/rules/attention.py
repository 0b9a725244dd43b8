"""Attention and rotary positions, each as one operator (opset 23)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.registry import rule


@rule("Attention")
def attention(call: Call) -> Tensor:
    """Scaled dot products of `(batch, n_heads, length, size)`, or of heads beside each other in the last dim."""
    _check(call)
    query, key, value = (call.tensor(position) for position in range(3))
    is_flat = query.dim() == 3
    if is_flat:
        n_query, n_key = int(call.attribute("q_num_heads")), int(call.attribute("kv_num_heads"))
        query, key, value = (_headed(x, n) for x, n in ((query, n_query), (key, n_key), (value, n_key)))
    each = int(query.shape[1]) // int(key.shape[1])
    if each > 1:
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    mask = call.tensor(3) if call.has(3) else None
    causal = bool(call.attribute("is_causal", 0))
    if causal and mask is not None:
        places = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        mask = mask & places if mask.dtype is torch.bool else mask.masked_fill(~places, -torch.inf)
        causal = False
    found = F.scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale=call.attribute("scale"))
    return found.transpose(1, 2).flatten(2) if is_flat else found


@rule("RotaryEmbedding")
def rotary(call: Call) -> Tensor:
    """The first numbers of `(batch, n_heads, length, size)` turned by their places, pair by pair; or of flat heads."""
    x, is_interleaved = call.tensor(0), bool(call.attribute("interleaved", 0))
    is_flat = x.dim() == 3
    if is_flat:
        x = _headed(x, int(call.attribute("num_heads")))
    cosines, sines = (call.tensor(position) for position in (1, 2))
    if call.has(3):
        places = call.tensor(3)
        cosines, sines = cosines[places], sines[places]
    cosines, sines = cosines.unsqueeze(1), sines.unsqueeze(1)
    n_turned = int(call.attribute("rotary_embedding_dim", 0)) or int(x.shape[-1])
    turned = x[..., :n_turned]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if is_interleaved else turned.chunk(2, -1)
    pair = [a * cosines - b * sines, a * sines + b * cosines]
    turned = torch.stack(pair, -1).flatten(-2) if is_interleaved else torch.cat(pair, -1)
    found = torch.cat([turned, x[..., n_turned:]], -1) if n_turned < int(x.shape[-1]) else turned
    return found.transpose(1, 2).flatten(2) if is_flat else found


def _check(call: Call) -> None:
    """Raise InputError for what PyTorch's operator does not do."""
    call.refuse_if(any(call.has(position) for position in (4, 5, 6)), "an attention without a past", "one")
    call.refuse_if(bool(call.attribute("softcap", 0.0)), "softcap 0", call.attribute("softcap"))
    call.refuse_if(len([name for name in call.node.outputs if name]) > 1, "one output", "several")


def _headed(x: Tensor, n_heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], n_heads, x.shape[2] // n_heads).transpose(1, 2)
