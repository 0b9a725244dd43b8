"""Reductions, gating, lookups, masks and other functions, with the units that can be removed by hand count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cases import conv
from tests.cases_more import image, later, token
from tests.nets import Case, Net, parameter


def squeeze_excite(m: Any, x: Tensor) -> Tensor:
    return x * m.up(m.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


def softmax_gate(m: Any, x: Tensor) -> Tensor:
    weights = m.gate(x.mean(1)).unflatten(1, (2, 8)).softmax(1)
    return (torch.stack([m.a(x), m.b(x)], 1) * weights.unsqueeze(2)).sum(1)


def experts(m: Any, x: Tensor) -> Tensor:
    gates = m.gate(x).softmax(-1)
    return torch.einsum("ntec,nte->ntc", torch.stack([m.a(x), m.b(x)], 2), gates)


def writes_a_slice(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2:5] = y[:, 2:5] * 2
    return y


def writes_a_channel(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 3] = 0
    return y


def adds_in_place_to_a_view(m: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :4].add_(1.0)
    y[:, 4:] *= m.s.view(-1, 1, 1)
    return y


def fills_a_table(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 12, 8, 8)
    y[:, :8] = x
    y[:, 8:] = m.b(x)
    return y


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    x[index] = value
    return x


def kernels(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, m.mix.softmax(0)[0] * m.w1 + m.mix.softmax(0)[1] * m.w2, padding=1)


REDUCTIONS: dict[str, Case] = {
    "mean of everything": image(lambda m, x: x - x.mean()),
    "mean over channels and positions": image(lambda m, x: x - x.mean((1, 2, 3), keepdim=True)),
    "sum over channels": image(lambda m, x: x.sum(1, keepdim=True), after=1),
    "sum over positions": image(lambda m, x: x.sum((2, 3), keepdim=True)),
    "nansum": image(lambda m, x: x.nansum(1, keepdim=True), after=1),
    "variance over positions": image(lambda m, x: x / (1 + x.var((2, 3), keepdim=True))),
    "variance over channels": image(lambda m, x: x.var(1, keepdim=True), 8, after=1),
    "deviation over positions": image(lambda m, x: x / (1 + x.std((2, 3), keepdim=True))),
    "mean and variance": image(lambda m, x: torch.cat(torch.var_mean(x, (2, 3), keepdim=True)[::-1], 1), 16, after=16),
    "amax over channels": image(lambda m, x: x.amax(1, keepdim=True), 8, after=1),
    "max over channels, relu": image(lambda m, x: x.relu().max(1, keepdim=True)[0], 8, after=1),
    "amin over positions": image(lambda m, x: x.amin((2, 3), keepdim=True)),
    "max with indices": image(lambda m, x: x.max(2)[0].unsqueeze(2)),
    "median over positions": image(lambda m, x: x.median(2)[0].unsqueeze(2)),
    "norm over channels": image(lambda m, x: x / (x.norm(dim=1, keepdim=True) + 1)),
    "norm of order 1": image(lambda m, x: x / (x.norm(p=1, dim=1, keepdim=True) + 1)),
    "norm of infinite order": image(lambda m, x: x / (x.norm(p=float("inf"), dim=1, keepdim=True) + 1)),
    "matrix norm": token(lambda m, x: x / (torch.linalg.matrix_norm(x, keepdim=True) + 1)),
    "vector norm": token(lambda m, x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1)),
    "logsumexp over positions": image(lambda m, x: x.logsumexp((2, 3), keepdim=True)),
    "logsumexp over channels": image(lambda m, x: x.logsumexp(1, keepdim=True), 8, after=1),
    "cumsum over channels": image(lambda m, x: x.cumsum(1), 8),
    "cumsum over positions": image(lambda m, x: x.cumsum(2)),
    "cumprod over positions": image(lambda m, x: x.cumprod(2)),
    "cummax over positions": image(lambda m, x: x.cummax(2)[0]),
    "logcumsumexp over positions": image(lambda m, x: x.logcumsumexp(2)),
    "prod over positions": image(lambda m, x: x.prod(2, keepdim=True)),
    "prod over channels": image(lambda m, x: x.prod(1, keepdim=True), 8, after=1),
    "argmax over positions": image(lambda m, x: x * x.argmax(2, keepdim=True)),
    "argmax over channels": image(lambda m, x: x * x.argmax(1, keepdim=True), 8),
    "aminmax": image(
        lambda m, x: torch.cat(torch.aminmax(x.flatten(2), dim=2, keepdim=True), 1).unsqueeze(3), after=16
    ),
    "any over channels": image(lambda m, x: x * (x > 0).any(1, keepdim=True)),
    "all over channels": image(lambda m, x: x * (x > -9).all(1, keepdim=True), 8),
    "count_nonzero": image(lambda m, x: x * x.relu().count_nonzero(1).unsqueeze(1)),
    "sort tokens": token(lambda m, x: x.sort(1)[0]),
    "sort channels": token(lambda m, x: x.sort(2)[0], 8),
    "topk tokens": token(lambda m, x: x.topk(3, 1)[0]),
    "topk channels": token(lambda m, x: x.topk(3, 2)[0], 8, after=3),
    "argsort tokens": token(lambda m, x: x * x.argsort(1)),
    "kthvalue": token(lambda m, x: x.kthvalue(2, 1, keepdim=True)[0]),
    "quantile over tokens": token(lambda m, x: x.quantile(0.5, 1, keepdim=True)),
    "softmax over channels": token(lambda m, x: x.softmax(-1), 8),
    "softmin over tokens": token(lambda m, x: F.softmin(x, 1)),
    "log softmax over tokens": token(lambda m, x: F.log_softmax(x, 1)),
    "gumbel": token(lambda m, x: F.softmax(x / 0.7, dim=1)),
    "softmax 2d": image(lambda m, x: nn.Softmax2d()(x), 8),
    "mean over tokens by matmul": token(lambda m, x: torch.full((1, 6), 1 / 6, dtype=x.dtype) @ x),
    "trace": token(lambda m, x: x * (x.mT @ x).diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]),
    "dist": token(lambda m, x: x * torch.dist(x, x.detach() * 2), 8),
    "trapezoid": token(lambda m, x: torch.trapezoid(x, dim=1).unsqueeze(1)),
}

GATING: dict[str, Case] = {
    "squeeze-excite": image(squeeze_excite, 20, down=later(nn.Linear, 8, 4), up=later(nn.Linear, 4, 8)),
    "softmax gate": token(
        softmax_gate, 24, gate=later(nn.Linear, 8, 16), a=later(nn.Linear, 8, 8), b=later(nn.Linear, 8, 8)
    ),
    "experts": token(experts, 24, gate=later(nn.Linear, 8, 2), a=later(nn.Linear, 8, 8), b=later(nn.Linear, 8, 8)),
    "glu tokens": token(lambda m, x: F.glu(x, -1), 12, after=4),
    "swiglu": token(
        lambda m, x: F.silu(m.g(x)) * m.u(x), 22, after=6, g=later(nn.Linear, 8, 6), u=later(nn.Linear, 8, 6)
    ),
    "swiglu, fused": token(
        lambda m, x: (lambda a, b: F.silu(a) * b)(*m.g(x).chunk(2, -1)), 22, after=6, g=later(nn.Linear, 8, 12)
    ),
    "channel gate": image(lambda m, x: x * m.g(x).sigmoid(), 16, g=later(conv, 8, 1)),
    "spatial gate": image(
        lambda m, x: x * m.g(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)).sigmoid(),
        8,
        g=later(conv, 2, 1),
    ),
    "lerp by a gate": token(
        lambda m, x: torch.lerp(x, m.b(x), m.g(x).sigmoid()), 16, b=later(nn.Linear, 8, 8), g=later(nn.Linear, 8, 8)
    ),
    "highway": token(
        lambda m, x: (g := m.g(x).sigmoid()) * m.b(x) + (1 - g) * x,
        16,
        b=later(nn.Linear, 8, 8),
        g=later(nn.Linear, 8, 8),
    ),
    "dynamic kernels": image(
        kernels, 24, mix=later(parameter, 2), w1=later(parameter, 8, 8, 3, 3), w2=later(parameter, 8, 8, 3, 3)
    ),
    "film": image(
        lambda m, x: (lambda s, b: x * s[..., None, None] + b[..., None, None])(*m.c(x.mean((2, 3))).chunk(2, 1)),
        16,
        c=later(nn.Linear, 8, 16),
    ),
}

LOOKUPS: dict[str, Case] = {
    "embedding": Case(
        lambda: Net(lambda m, x: m.h(m.e((x > 0).long()).sum(1)), e=nn.Embedding(2, 8), h=nn.Linear(8, 3)), ((6,),), 8
    ),
    "embedding, padded": Case(
        lambda: Net(
            lambda m, x: m.h(m.e((x > 0).long()).sum(1)), e=nn.Embedding(2, 8, padding_idx=0), h=nn.Linear(8, 3)
        ),
        ((6,),),
        8,
    ),
    "embedding bag": Case(
        lambda: Net(lambda m, x: m.h(m.e((x > 0).long())), e=nn.EmbeddingBag(2, 8), h=nn.Linear(8, 3)), ((6,),), 8
    ),
    "embedding bag, sum": Case(
        lambda: Net(lambda m, x: m.h(m.e((x > 0).long())), e=nn.EmbeddingBag(2, 8, mode="sum"), h=nn.Linear(8, 3)),
        ((6,),),
        8,
    ),
    "embedding bag, max": Case(
        lambda: Net(lambda m, x: m.h(m.e((x > 0).long())), e=nn.EmbeddingBag(2, 8, mode="max"), h=nn.Linear(8, 3)),
        ((6,),),
        8,
    ),
    "embeddings added": Case(
        lambda: Net(
            lambda m, x: m.h(m.e((x > 0).long()) + m.p(torch.arange(6))).sum(1),
            e=nn.Embedding(2, 8),
            p=nn.Embedding(6, 8),
            h=nn.Linear(8, 3),
        ),
        ((6,),),
        8,
    ),
    "one hot": Case(
        lambda: Net(
            lambda m, x: m.h(m.a(F.one_hot((x > 0).long(), 2).to(x.dtype)).sum(1)), a=nn.Linear(2, 8), h=nn.Linear(8, 3)
        ),
        ((6,),),
        8,
    ),
    "class token": token(lambda m, x: torch.cat([m.c.expand(x.shape[0], -1, -1), x], 1), c=later(parameter, 1, 1, 8)),
    "position table": token(lambda m, x: x + m.p, p=later(parameter, 1, 6, 8)),
    "position table, cut": token(lambda m, x: x + m.p[:, : x.shape[1]], 19, p=later(parameter, 1, 9, 8)),
    "position table, resized": image(
        lambda m, x: x + F.interpolate(m.p, size=(8, 8), mode="bicubic"), p=later(parameter, 1, 8, 4, 4)
    ),
    "table by a constant index": token(
        lambda m, x: x + m.t[torch.tensor([0, 1, 1, 2, 0, 2])], t=later(parameter, 3, 8)
    ),
    "scatter": token(lambda m, x: torch.zeros_like(x).scatter(1, x.argsort(1), x)),
    "index_add": token(lambda m, x: torch.zeros_like(x).index_add(1, torch.tensor([0, 0, 1, 1, 2, 2]), x), 16),
    "index_copy": token(lambda m, x: torch.zeros_like(x).index_copy(1, torch.tensor([5, 4, 3, 2, 1, 0]), x), 16),
    "writes by a mask": token(lambda m, x: put(x.clone(), x < 0, 0.0)),
    "writes by indices": token(lambda m, x: put(x.clone(), (slice(None), [0, 2]), x[:, [1, 3]] * 2)),
    "writes channels by indices": token(lambda m, x: put(x.clone(), (slice(None), slice(None), [0, 2]), 0.0), 8),
    "inverse": token(lambda m, x: torch.linalg.inv(x.mT @ x + torch.eye(8, dtype=x.dtype)), 8),
    "index_fill": token(lambda m, x: x.index_fill(1, torch.tensor([0, 2]), 0.0), 16),
    "masked_scatter": token(lambda m, x: x.masked_scatter(x > 0, x.flip(1)), 8),
    "take": token(lambda m, x: x * torch.take(x, torch.tensor([0])), 15),
    "bucketize": token(
        lambda m, x: x + m.e(torch.bucketize(x[..., 0], m.edges)),
        15,
        e=later(nn.Embedding, 4, 8),
        edges=torch.tensor([-1.0, 0, 1]),
    ),
}

MASKS: dict[str, Case] = {
    "masked fill": image(lambda m, x: x.masked_fill(x < 0, 0.0)),
    "masked fill, another mask": image(lambda m, x: x.masked_fill(m.b(x) < 0, 0.5), 16, b=later(conv, 8, 8)),
    "where": image(lambda m, x: torch.where(x > 0, x, 0.1 * x)),
    "where, one channel": image(lambda m, x: torch.where(m.b(x) > 0, x, 0.1 * x), 16, b=later(conv, 8, 1)),
    "clamp": image(lambda m, x: x.clamp(-0.5, 0.5)),
    "clamp to a tensor": image(lambda m, x: x.clamp(max=m.top), top=later(parameter, 8, 1, 1)),
    "minimum": image(lambda m, x: torch.minimum(x, m.b(x)), b=later(conv, 8, 8)),
    "comparison as a value": image(lambda m, x: x * (x > 0.1).to(x.dtype)),
    "sign": image(lambda m, x: x.sign() * x.abs().sqrt()),
    "fmod": image(lambda m, x: torch.fmod(x, 0.7)),
    "heaviside": image(lambda m, x: x * torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype))),
    "nan to num": image(lambda m, x: x.nan_to_num()),
    "logit": image(lambda m, x: x.sigmoid().logit()),
    "atan2": image(lambda m, x: torch.atan2(x, m.b(x).exp()), b=later(conv, 8, 8)),
    "pow": image(lambda m, x: x.abs() ** 1.5),
    "tensor pow": image(lambda m, x: x.abs().add(0.1) ** m.p, p=later(parameter, 8, 1, 1)),
    "quantised by hand": image(lambda m, x: (x * 8).round() / 8),
    "clone and detach": image(lambda m, x: x.clone() + x.detach()),
    "writes a slice": image(writes_a_slice),
    "writes a channel": image(writes_a_channel, 15),
    "adds in place to a view": image(adds_in_place_to_a_view, s=later(parameter, 4)),
    "fills a table": image(fills_a_table, 20, after=12, b=later(conv, 8, 4)),
    "relu in place on a view": image(lambda m, x: (y := x.clone(), y[:, :4].relu_())[0]),
    "swap": image(lambda m, x: torch.cat([x[:, 4:], x[:, :4]], 1)),
    "cosine schedule": image(lambda m, x: x * torch.linspace(0.5, 1.5, 8, dtype=x.dtype).cos().view(8, 1, 1)),
    "constant matrix": token(lambda m, x: x @ m.d, 24, d=torch.linspace(-1, 1, 64).view(8, 8)),
    "mask of both dims": token(
        lambda m, x: x @ (m.w * m.d), 24, d=(torch.arange(64).view(8, 8) % 3).double(), w=later(parameter, 8, 8)
    ),
    "constant of both dims": token(
        lambda m, x: x @ (m.w * torch.linspace(-1, 1, 64, dtype=x.dtype).view(8, 8)), 24, w=later(parameter, 8, 8)
    ),
    "float of an int buffer": image(lambda m, x: x * m.n.to(x.dtype).view(8, 1, 1), n=torch.arange(8)),
    "rrelu": image(lambda m, x: F.rrelu(x)),
    "threshold": image(lambda m, x: F.threshold(x, 0.1, 0.0)),
    "dropout 1d": token(lambda m, x: F.dropout1d(x, 0.3, m.training)),
    "dropout 3d": image(lambda m, x: F.dropout3d(x.unsqueeze(2), 0.3, m.training).squeeze(2)),
    "alpha dropout": image(lambda m, x: F.alpha_dropout(x, 0.3, m.training)),
    "feature alpha dropout": image(lambda m, x: F.feature_alpha_dropout(x, 0.3, m.training)),
    "fft": token(lambda m, x: torch.fft.fft(x, dim=1).real),
    "fft over both": token(lambda m, x: torch.fft.rfft2(x.unsqueeze(1)).abs().squeeze(1), 8, after=5),
    "polynomial": image(
        lambda m, x: m.a * x**2 + m.b * x + m.c,
        a=later(parameter, 8, 1, 1),
        b=later(parameter, 8, 1, 1),
        c=later(parameter, 8, 1, 1),
    ),
    "identity": image(lambda m, x: nn.Identity()(x)),
    "type as": image(lambda m, x: x.float().type_as(x)),
    "checkpoint": image(
        lambda m, x: torch.utils.checkpoint.checkpoint(m.b, x, use_reentrant=False), 24, b=later(conv, 8, 8)
    ),
}

CASES: dict[str, Case] = {**REDUCTIONS, **GATING, **LOOKUPS, **MASKS}
