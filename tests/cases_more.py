"""More tiny networks: the less common forms of each operation, with the units that can be removed by hand count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cases import IMAGE, TOKENS, between, conv, tokens
from tests.nets import Case, Net, parameter

SEQUENCE = (3, 9)
VOLUME = (3, 4, 4, 4)


def image(middle: Callable[[Any, Tensor], Tensor], units: int = 16, /, after: int = 8, **options: Any) -> Case:
    """conv(3 -> 8), `middle`, conv(after -> 8), global mean, head: 8 units of each convolution."""
    parts = {name: options.pop(name) for name in list(options) if name not in ("exact", "label_inputs")}

    def build() -> nn.Module:
        made = {name: part() if isinstance(part, _Later) else part for name, part in parts.items()}
        return between(lambda m, x: m.second(middle(m, x)), second=conv(after, 8), **made)

    return Case(build, (IMAGE,), units, **options)


class _Later:
    """A part of a network that is made when the network is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __call__(self) -> Any:
        return self.make()


def later(make: Callable[..., Any], *args: Any, **options: Any) -> _Later:
    return _Later(lambda: make(*args, **options))


def token(middle: Callable[[Any, Tensor], Tensor], units: int = 16, /, after: int = 8, **options: Any) -> Case:
    """linear(5 -> 8) on 6 tokens, `middle`, linear(after -> 8), tanh, head: 8 units of each linear layer."""
    parts = {name: options.pop(name) for name in list(options) if name not in ("exact", "label_inputs")}

    def build() -> nn.Module:
        made = {name: part() if isinstance(part, _Later) else part for name, part in parts.items()}
        return tokens(lambda m, x: m.second(middle(m, x)).tanh(), second=nn.Linear(after, 8), **made)

    return Case(build, (TOKENS,), units, **options)


MOVEMENT: dict[str, Case] = {
    "unfold tensor": image(lambda m, x: x.unfold(2, 2, 2).mean(-1)),
    "im2col, channels stay": image(lambda m, x: F.unfold(x, 3, padding=1).view(-1, 8, 9, 8, 8).mean(2)),
    "im2col, fold": image(lambda m, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)),
    "roll over positions": image(lambda m, x: x.roll((1, -2), (2, 3))),
    "roll over channels": image(lambda m, x: x.roll(3, 1)),
    "flip positions": image(lambda m, x: x.flip(2, 3)),
    "repeat channels": image(lambda m, x: x.repeat(1, 2, 1, 1), after=16),
    "repeat positions": image(lambda m, x: x.repeat(1, 1, 2, 1)),
    "repeat_interleave channels": image(lambda m, x: x.repeat_interleave(2, 1), after=16),
    "repeat_interleave positions": image(lambda m, x: x.repeat_interleave(2, 2)),
    "tile": image(lambda m, x: x.tile(1, 2, 1, 1), after=16),
    "tensor_split": image(lambda m, x: torch.cat(torch.tensor_split(x, 3, 1)[::-1], 1)),
    "tensor_split by indices": image(lambda m, x: torch.cat(torch.tensor_split(x, (2, 5), 1)[::-1], 1)),
    "hsplit and vsplit": image(lambda m, x: torch.cat(torch.hsplit(x, 2), 1), after=8),
    "dsplit": image(lambda m, x: torch.cat(torch.dsplit(x, 2), 1), after=16),
    "index a list": image(lambda m, x: x[:, [7, 0, 1, 2, 3, 4, 5, 6]]),
    "index a negative list": image(lambda m, x: x[:, [-1, 0, 1, -5, -4, -3, -2, 2]]),
    "index a table": token(lambda m, x: x + m.t[(x.sum(-1) > 0).long()], t=later(parameter, 2, 8)),
    "index a buffer": image(lambda m, x: x[:, m.i], i=torch.tensor([2, 1, 0, 3, 4, 7, 6, 5])),
    "index a mask": image(lambda m, x: x[:, [True, False] * 4], 8, after=4),
    "index positions by two": image(lambda m, x: x[:, :, [[0, 1], [2, 3]], [[1, 1], [2, 2]]]),
    "index channels and positions": image(
        lambda m, x: x[:, [0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 0]].unsqueeze(-1)
    ),
    "index a 2d index": image(lambda m, x: x[:, torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])].flatten(1, 2), 12),
    "index a step": image(lambda m, x: x[:, ::2], after=4),
    "index negative": image(lambda m, x: x[:, -4:], after=4),
    "pixel shuffle": image(lambda m, x: F.pixel_shuffle(x, 2), 10, after=2),
    "pixel unshuffle": image(lambda m, x: F.pixel_unshuffle(x, 2), after=32),
    "stack": image(lambda m, x: torch.stack([x, m.b(x)], 2).flatten(1, 2), after=16, b=later(conv, 8, 8)),
    "stack, then max": image(lambda m, x: torch.stack([x, m.b(x)], 1).amax(1), b=later(conv, 8, 8)),
    "stack at the end": image(lambda m, x: torch.stack([x, x * 2], -1).mean(-1)),
    "hstack": image(lambda m, x: torch.hstack([x, m.b(x)]), 24, after=16, b=later(conv, 8, 8)),
    "dstack": token(lambda m, x: torch.dstack([x, m.b(x)]), 24, after=16, b=later(nn.Linear, 8, 8)),
    "column_stack": token(lambda m, x: torch.column_stack([x, x.sin()])),
    "movedim of several": image(lambda m, x: x.movedim((1, 2), (3, 1)).movedim((3, 1), (1, 2))),
    "swapaxes": image(lambda m, x: m.l(x.swapaxes(1, 3)).swapaxes(1, 3), 24, l=later(nn.Linear, 8, 8)),
    "adjoint": token(lambda m, x: x.mT.mH),
    "numpy T": Case(
        lambda: Net(lambda m, x: m.b((m.w @ m.a(x).T).T), a=nn.Linear(5, 8), w=parameter(6, 8), b=nn.Linear(6, 3)),
        ((5,),),
        14,
    ),
    "unflatten": image(lambda m, x: nn.Unflatten(1, (2, 4))(x).flatten(1, 2), 12),
    "flatten positions": image(lambda m, x: x.flatten(2).unflatten(2, (8, 8))),
    "flatten everything": Case(
        lambda: Net(lambda m, x: m.head(m.first(x).flatten(1)), first=conv(3, 8), head=nn.Linear(512, 4)), (IMAGE,), 8
    ),
    "squeeze": image(lambda m, x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)[:, :, None, None]),
    "squeeze of several": image(lambda m, x: x.mean((2, 3), keepdim=True).squeeze((2, 3)).unsqueeze(2).unsqueeze(3)),
    "squeeze all": Case(
        lambda: Net(lambda m, x: m.b(m.a(x.unsqueeze(1)).squeeze()), a=nn.Linear(5, 8), b=nn.Linear(8, 3)), ((5,),), 8
    ),
    "expand": image(lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)),
    "broadcast_to": image(lambda m, x: x.mean((2, 3), keepdim=True).broadcast_to(x.shape)),
    "expand_as": image(lambda m, x: x + m.s.expand_as(x), s=later(parameter, 8, 1, 1)),
    "broadcast_tensors": image(lambda m, x: torch.mul(*torch.broadcast_tensors(x, m.s)), s=later(parameter, 8, 1, 1)),
    "view_as": image(lambda m, x: x.flatten(2).view_as(x)),
    "diagonal": token(lambda m, x: torch.diagonal(x.unsqueeze(-1).expand(-1, -1, -1, 6), dim1=1, dim2=3).mT),
    "tril": token(lambda m, x: x.transpose(1, 2).tril().transpose(1, 2)),
    "tril of a constant": token(lambda m, x: torch.ones(6, 6, dtype=x.dtype).tril() @ x),
    "triu of a parameter": token(lambda m, x: m.w.triu() @ x, w=later(parameter, 6, 6)),
    "diff over positions": image(lambda m, x: x.diff(dim=2)),
    "diff over channels": image(lambda m, x: x.diff(dim=1), 8, after=7),
    "rot90": image(lambda m, x: x.rot90(1, (2, 3))),
    "gather tokens": token(lambda m, x: x.gather(1, x.argmax(1, keepdim=True))),
    "chunk": image(lambda m, x: torch.mul(*x.chunk(2, 1)), 12, after=4),
    "chunk unevenly": image(lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    "split sizes": image(lambda m, x: torch.cat(x.split((1, 3, 4), 1)[::-1], 1), 15),  # a single one stays
    "unsafe chunk": image(lambda m, x: torch.cat(x.unsafe_chunk(2, 1)[::-1], 1)),
    "unbind positions": image(lambda m, x: sum(x.unbind(2)).unsqueeze(2)),
    "narrow": image(lambda m, x: x.narrow(1, 2, 4), after=4),
    "select a position": image(lambda m, x: x.select(2, 3).unsqueeze(2)),
    "select a channel": image(lambda m, x: x * x[:, 3:4], 15),
    "meshgrid": image(
        lambda m, x: (
            x + torch.meshgrid(torch.arange(8.0, dtype=x.dtype), torch.arange(8.0, dtype=x.dtype), indexing="ij")[0]
        )
    ),
    "outer": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x) @ torch.outer(m.u, m.v)),
            a=nn.Linear(5, 8),
            u=parameter(8),
            v=parameter(6),
            b=nn.Linear(6, 3),
        ),
        ((5,),),
        14,
    ),
    "channel shuffle": image(lambda m, x: nn.ChannelShuffle(4)(x)),
    "as_strided": image(lambda m, x: x.contiguous().as_strided(x.shape, x.stride()), 8),
    "block_diag": token(
        lambda m, x: x @ torch.block_diag(m.a, m.b), 24, a=later(parameter, 4, 4), b=later(parameter, 4, 4)
    ),
    "kron": token(lambda m, x: x @ torch.kron(m.a, m.b), 16, a=later(parameter, 4, 2), b=later(parameter, 2, 4)),
    "zero padding": image(lambda m, x: F.pad(x, (1, 2, 0, 1))),
    "constant padding": image(lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.5)),
    "channel padding": image(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 3)), after=13),
    "reflect padding": image(lambda m, x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    "replicate padding": image(lambda m, x: F.pad(x, (1, 2, 0, 1), mode="replicate")),
    "circular padding": image(lambda m, x: F.pad(x, (1, 2, 0, 1), mode="circular")),
    "cropping": image(lambda m, x: F.pad(x, (-1, -1, 0, -2))),
}

CONTRACTION: dict[str, Case] = {
    "einsum ellipsis": token(lambda m, x: torch.einsum("...c,cd->...d", x, m.w), 24, w=later(parameter, 8, 8)),
    "einsum ellipsis in the middle": image(
        lambda m, x: torch.einsum("nc...,cd->nd...", x, m.w), 24, w=later(parameter, 8, 8)
    ),
    "einsum without arrow": token(
        lambda m, x: torch.einsum("ntc,cd", x, m.w).movedim(0, -1), 24, w=later(parameter, 8, 8)
    ),
    "einsum repeated operand": token(lambda m, x: torch.einsum("ntc,nsc->nts", x, x), 16, after=6),
    "einsum repeated letter": token(lambda m, x: x * torch.einsum("cc->c", m.w), 16, w=later(parameter, 8, 8)),
    "einsum trace": token(lambda m, x: x * torch.einsum("ii", m.w), 24, w=later(parameter, 8, 8)),
    "einsum three operands": token(
        lambda m, x: torch.einsum("ntc,cd,de->nte", x, m.u, m.w), 32, u=later(parameter, 8, 8), w=later(parameter, 8, 8)
    ),
    "einsum reduction": token(
        lambda m, x: torch.einsum("ntc,c->nt", x, m.u).unsqueeze(-1), 16, after=1, u=later(parameter, 8)
    ),
    "einsum elementwise": token(lambda m, x: torch.einsum("ntc,ntc->ntc", x, m.b(x)), 16, b=later(nn.Linear, 8, 8)),
    "einsum heads": token(
        lambda m, x: torch.einsum("nthd,hde->nthe", x.unflatten(2, (4, 2)), m.w).flatten(2),
        12,
        after=12,
        w=later(parameter, 4, 2, 3),
    ),
    "tensordot": token(lambda m, x: torch.tensordot(x, m.w, dims=([2], [0])), 24, w=later(parameter, 8, 8)),
    "inner": token(lambda m, x: torch.inner(x, m.w), 24, w=later(parameter, 8, 8)),
    "chain_matmul": token(
        lambda m, x: x @ torch.linalg.multi_dot([m.u, m.w]), 32, u=later(parameter, 8, 8), w=later(parameter, 8, 8)
    ),
    "vecdot": token(lambda m, x: x * torch.linalg.vecdot(x, m.b(x)).unsqueeze(-1), 16, b=later(nn.Linear, 8, 8)),
    "dot by hand": token(lambda m, x: x * (x * m.b(x)).sum(-1, keepdim=True), 16, b=later(nn.Linear, 8, 8)),
    "addmm": Case(
        lambda: Net(
            lambda m, x: m.b(torch.addmm(m.c, m.a(x), m.w, beta=0.5, alpha=2.0)),
            a=nn.Linear(5, 8),
            c=parameter(6),
            w=parameter(8, 6),
            b=nn.Linear(6, 3),
        ),
        ((5,),),
        14,
    ),
    "addmv": Case(
        lambda: Net(lambda m, x: torch.addmv(m.c, m.a(x), m.w), a=nn.Linear(5, 8), c=parameter(1), w=parameter(8)),
        ((5,),),
        8,
    ),
    "addbmm": token(
        lambda m, x: torch.addbmm(m.c, x.transpose(1, 2), x) @ m.w,
        16,
        c=later(parameter, 8, 8),
        w=later(parameter, 8, 8),
    ),
    "addr": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x) @ torch.addr(m.w, m.u, m.v)),
            a=nn.Linear(5, 8),
            u=parameter(8),
            v=parameter(6),
            w=parameter(8, 6),
            b=nn.Linear(6, 3),
        ),
        ((5,),),
        14,
    ),
    "addcmul": token(lambda m, x: torch.addcmul(x, x, m.b(x), value=0.5), 16, b=later(nn.Linear, 8, 8)),
    "lerp": token(lambda m, x: torch.lerp(x, m.b(x), 0.3), 16, b=later(nn.Linear, 8, 8)),
    "bilinear": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.p(x), m.q(x))),
            p=nn.Linear(5, 8),
            q=nn.Linear(5, 7),
            b=nn.Bilinear(8, 7, 6),
            h=nn.Linear(6, 3),
        ),
        ((5,),),
        21,
    ),
    "conv same": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 3, padding="same")),
    "conv same, dilated": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 3, padding="same", dilation=2)),
    "conv valid": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 3, padding="valid")),
    "conv same, even kernel": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 4, padding="same")),
    "conv same, depthwise": image(lambda m, x: m.c(x), c=later(nn.Conv2d, 8, 8, 3, padding="same", groups=8)),
    "conv same, groups": image(lambda m, x: m.c(x), 12, c=later(nn.Conv2d, 8, 8, 3, padding="same", groups=4)),
    "conv circular": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 3, padding=1, padding_mode="circular")),
    "conv reflect": image(lambda m, x: m.c(x), 24, c=later(nn.Conv2d, 8, 8, 3, padding=1, padding_mode="reflect")),
    "depthwise multiplier 3": image(lambda m, x: m.c(x), after=24, c=later(conv, 8, 24, groups=8)),
    "grouped, wide out": image(lambda m, x: m.c(x), 12, after=16, c=later(conv, 8, 16, groups=4)),
    "grouped, narrow out": image(lambda m, x: m.c(x), 12, after=4, c=later(conv, 8, 4, groups=4)),
    "two groups, wide out": image(lambda m, x: m.c(x), 20, after=16, c=later(conv, 8, 16, groups=2)),
    "conv1d groups": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.a(x)).mean(2)),
            a=nn.Conv1d(3, 8, 3),
            b=nn.Conv1d(8, 8, 3, groups=8),
            h=nn.Linear(8, 3),
        ),
        (SEQUENCE,),
        8,
    ),
    "conv1d same": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.a(x)).mean(2)),
            a=nn.Conv1d(3, 8, 3, padding="same"),
            b=nn.Conv1d(8, 6, 4, padding="same"),
            h=nn.Linear(6, 3),
        ),
        (SEQUENCE,),
        14,
    ),
    "conv3d same": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.a(x)).mean((2, 3, 4))),
            a=nn.Conv3d(3, 8, 3, padding="same"),
            b=nn.Conv3d(8, 8, 3, groups=8),
            h=nn.Linear(8, 3),
        ),
        (VOLUME,),
        8,
    ),
    "transposed 1d": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.a(x)).mean(2)),
            a=nn.Conv1d(3, 8, 3),
            b=nn.ConvTranspose1d(8, 6, 3, 2, 1, output_padding=1),
            h=nn.Linear(6, 3),
        ),
        (SEQUENCE,),
        14,
    ),
    "transposed 2d, groups": image(
        lambda m, x: m.c(x), 24, c=later(nn.ConvTranspose2d, 8, 8, 3, 2, 1, output_padding=1)
    ),
    "transposed 2d, four groups": image(
        lambda m, x: m.c(x), 12, after=16, c=later(nn.ConvTranspose2d, 8, 16, 3, 2, 1, 1, groups=4)
    ),
    "transposed 2d, two groups": image(
        lambda m, x: m.c(x), 20, after=16, c=later(nn.ConvTranspose2d, 8, 16, 3, 2, 1, 1, groups=2)
    ),
    "transposed depthwise, multiplier": image(
        lambda m, x: m.c(x), 16, after=16, c=later(nn.ConvTranspose2d, 8, 16, 3, 2, groups=8)
    ),
    "transposed 2d, output size": image(
        lambda m, x: m.c(x, output_size=(16, 16)), 24, c=later(nn.ConvTranspose2d, 8, 8, 3, 2, 1)
    ),
    "transposed 3d": Case(
        lambda: Net(
            lambda m, x: m.h(m.b(m.a(x)).mean((2, 3, 4))),
            a=nn.Conv3d(3, 8, 3),
            b=nn.ConvTranspose3d(8, 8, 2, 2, groups=4),
            h=nn.Linear(8, 3),
        ),
        (VOLUME,),
        4,
    ),
    "weight norm": image(lambda m, x: m.c(x), 24, c=later(lambda: nn.utils.parametrizations.weight_norm(conv(8, 8)))),
    "old weight norm": image(lambda m, x: m.c(x), 24, c=later(lambda: nn.utils.weight_norm(conv(8, 8)))),
    "weight norm, linear": token(
        lambda m, x: m.c(x), 24, c=later(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    ),
    "weight norm of all": token(
        lambda m, x: m.c(x), 24, c=later(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8), dim=None))
    ),
    "spectral norm": image(
        lambda m, x: m.c(x), 24, c=later(lambda: nn.utils.parametrizations.spectral_norm(conv(8, 8)))
    ),
    "orthogonal": token(
        lambda m, x: m.c(x), 16, c=later(lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)))
    ),
    "tied embedding": Case(
        lambda: Net(
            lambda m, x: F.linear(m.b(m.t((x.abs() * 3).long().clamp(max=8))), m.t.weight),
            t=nn.Embedding(9, 8),
            b=nn.Linear(8, 8),
        ),
        ((6,),),
        8,
    ),
    "cdist": token(lambda m, x: torch.cdist(x, m.p.expand(x.shape[0], -1, -1)), 20, after=4, p=later(parameter, 4, 8)),
    "pairwise distance": token(
        lambda m, x: x * F.pairwise_distance(x, m.b(x), keepdim=True), 8, b=later(nn.Linear, 8, 8)
    ),
    "cosine similarity": token(
        lambda m, x: x * F.cosine_similarity(x, m.b(x), dim=-1).unsqueeze(-1), 16, b=later(nn.Linear, 8, 8)
    ),
    "normalize": token(lambda m, x: F.normalize(x, dim=-1)),
    "cross": Case(
        lambda: Net(
            lambda m, x: m.h(torch.cross(m.a(x), m.b(x), dim=-1)),
            a=nn.Linear(5, 3),
            b=nn.Linear(5, 3),
            h=nn.Linear(3, 3),
        ),
        ((5,),),
        0,
    ),
    "linear without bias": token(lambda m, x: m.b(x), 24, b=later(nn.Linear, 8, 8, bias=False)),
    "lazy linear": token(lambda m, x: m.b(x), 24, b=later(nn.Linear, 8, 8)),
}

CASES: dict[str, Case] = {**MOVEMENT, **CONTRACTION}
