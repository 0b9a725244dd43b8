"""Normalisation, pooling, resampling, reductions and gating in their less common forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.cases import conv
from tests.cases_more import SEQUENCE, VOLUME, image, later, token
from tests.nets import Case, Net, parameter

NORMALISATION: dict[str, Case] = {
    "batch norm": image(lambda m, x: m.n(x), n=later(nn.BatchNorm2d, 8)),
    "batch norm, not affine": image(lambda m, x: m.n(x), n=later(nn.BatchNorm2d, 8, affine=False)),
    "batch norm, no statistics": image(lambda m, x: m.n(x), n=later(nn.BatchNorm2d, 8, track_running_stats=False)),
    "batch norm 1d": Case(
        lambda: Net(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(5, 8), n=nn.BatchNorm1d(8), b=nn.Linear(8, 3)),
        ((5,),),
        8,
    ),
    "batch norm 1d, tokens": token(lambda m, x: m.n(x.mT).mT, n=later(nn.BatchNorm1d, 8)),
    "batch norm over tokens": token(lambda m, x: m.n(x), n=later(nn.BatchNorm1d, 6)),
    "batch norm 3d": Case(
        lambda: Net(
            lambda m, x: m.h(m.n(m.a(x)).mean((2, 3, 4))), a=nn.Conv3d(3, 8, 3), n=nn.BatchNorm3d(8), h=nn.Linear(8, 3)
        ),
        (VOLUME,),
        8,
    ),
    "instance norm": image(lambda m, x: m.n(x), n=later(nn.InstanceNorm2d, 8)),
    "instance norm, affine": image(lambda m, x: m.n(x), n=later(nn.InstanceNorm2d, 8, affine=True)),
    "instance norm, statistics": image(
        lambda m, x: m.n(x), n=later(nn.InstanceNorm2d, 8, affine=True, track_running_stats=True)
    ),
    "group norm": image(lambda m, x: m.n(x), 12, n=later(nn.GroupNorm, 4, 8)),
    "group norm, not affine": image(lambda m, x: m.n(x), 12, n=later(nn.GroupNorm, 4, 8, affine=False)),
    "group norm, one group": image(lambda m, x: m.n(x), exact=False, n=later(nn.GroupNorm, 1, 8)),
    "group norm, single channels": image(lambda m, x: m.n(x), n=later(nn.GroupNorm, 8, 8)),
    "layer norm": token(lambda m, x: m.n(x), exact=False, n=later(nn.LayerNorm, 8)),
    "layer norm, not affine": token(
        lambda m, x: m.n(x), exact=False, n=later(nn.LayerNorm, 8, elementwise_affine=False)
    ),
    "layer norm, no bias": token(lambda m, x: m.n(x), exact=False, n=later(nn.LayerNorm, 8, bias=False)),
    "layer norm over an image": image(lambda m, x: m.n(x), exact=False, n=later(nn.LayerNorm, (8, 8, 8))),
    "layer norm over positions": image(lambda m, x: m.n(x), n=later(nn.LayerNorm, (8, 8))),
    "layer norm, channels last": image(
        lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), exact=False, n=later(nn.LayerNorm, 8)
    ),
    "layer norm by hand": token(
        lambda m, x: (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * m.w + m.b
        ),
        8,
        w=later(parameter, 8),
        b=later(parameter, 8),
    ),
    "rms norm": token(lambda m, x: m.n(x), exact=False, n=later(nn.RMSNorm, 8)),
    "rms norm, not affine": token(lambda m, x: m.n(x), exact=False, n=later(nn.RMSNorm, 8, elementwise_affine=False)),
    "rms norm by hand": token(
        lambda m, x: x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt() * m.w, w=later(parameter, 8)
    ),
    "local response norm": image(lambda m, x: m.n(x), 8, n=later(nn.LocalResponseNorm, 3)),
    "frozen batch norm": image(
        lambda m, x: (
            x * (m.w * (m.v.abs() + 1e-5).rsqrt()).view(1, -1, 1, 1)
            + (m.b - m.u * m.w * (m.v.abs() + 1e-5).rsqrt()).view(1, -1, 1, 1)
        ),
        w=torch.rand(8),
        b=torch.rand(8),
        v=torch.rand(8) + 0.5,
        u=torch.rand(8),
    ),
    "global response norm": image(
        lambda m, x: (
            m.g * (x * (n := x.norm(p=2, dim=(2, 3), keepdim=True)) / (n.mean(1, keepdim=True) + 1e-6)) + m.b + x
        ),
        g=later(parameter, 1, 8, 1, 1),
        b=later(parameter, 1, 8, 1, 1),
    ),
}


def unpooled(m: Any, x: Tensor) -> Tensor:
    small, where = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(small, where, 2)


def attentive_pool(m: Any, x: Tensor) -> Tensor:
    return ((m.score(x).softmax(1)) * x).sum(1, keepdim=True)


def sequence(pool: Callable[[Tensor], Tensor]) -> Case:
    """conv1d(3 -> 8), `pool`, conv1d, mean: the 8 units of the first."""
    return Case(
        lambda: Net(lambda m, x: m.b(pool(m.a(x))).mean(2), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 1)), (SEQUENCE,), 8
    )


def volume(pool: Callable[[Tensor], Tensor]) -> Case:
    """The same in three dims."""
    return Case(
        lambda: Net(lambda m, x: m.b(pool(m.a(x))).mean((2, 3, 4)), a=nn.Conv3d(3, 8, 1), b=nn.Conv3d(8, 4, 1)),
        (VOLUME,),
        8,
    )


POOLING: dict[str, Case] = {
    "max pool, ceil": image(lambda m, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max pool, dilated": image(lambda m, x: F.max_pool2d(x, 3, 1, 1, 2)),
    "max pool, indices": image(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "max unpool": image(unpooled),
    "max pool 1d": sequence(lambda x: F.max_pool1d(x, 2)),
    "max pool 3d": volume(lambda x: F.max_pool3d(x, 2)),
    "average pool": image(lambda m, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "average pool 1d": sequence(lambda x: F.avg_pool1d(x, 2)),
    "average pool 3d": volume(lambda x: F.avg_pool3d(x, 2)),
    "adaptive average pool": image(lambda m, x: F.adaptive_avg_pool2d(x, (3, 5))),
    "adaptive average pool to one": image(lambda m, x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive average pool 1d": token(lambda m, x: F.adaptive_avg_pool1d(x.mT, 3).mT),
    "adaptive average pool 3d": Case(
        lambda: Net(
            lambda m, x: m.b(F.adaptive_avg_pool3d(m.a(x), 2)).mean((2, 3, 4)),
            a=nn.Conv3d(3, 8, 1),
            b=nn.Conv3d(8, 4, 1),
        ),
        (VOLUME,),
        8,
    ),
    "adaptive max pool": image(lambda m, x: F.adaptive_max_pool2d(x, (3, 5))),
    "adaptive max pool, indices": image(lambda m, x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0]),
    "adaptive max pool 1d": token(lambda m, x: F.adaptive_max_pool1d(x.mT, 3).mT),
    "adaptive max pool 3d": Case(
        lambda: Net(
            lambda m, x: m.b(F.adaptive_max_pool3d(m.a(x), 2)).mean((2, 3, 4)),
            a=nn.Conv3d(3, 8, 1),
            b=nn.Conv3d(8, 4, 1),
        ),
        (VOLUME,),
        8,
    ),
    "lp pool": image(lambda m, x: F.lp_pool2d(x, 2, 2)),
    "lp pool 1d": Case(
        lambda: Net(lambda m, x: m.b(F.lp_pool1d(m.a(x), 2, 2)).mean(2), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 1)),
        (SEQUENCE,),
        8,
    ),
    "pool over channels": image(lambda m, x: F.max_pool1d(x.flatten(2).mT, 2).mT.unflatten(2, (8, 8)), 8, after=4),
    "attentive pool": token(attentive_pool, score=later(nn.Linear, 8, 1)),
    "upsample nearest": image(lambda m, x: F.interpolate(x, scale_factor=2)),
    "upsample nearest, by size": image(lambda m, x: F.interpolate(x, size=(5, 11))),
    "upsample nearest exact": image(lambda m, x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact")),
    "upsample bilinear": image(lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)),
    "upsample bilinear, recomputed": image(
        lambda m, x: F.interpolate(x, scale_factor=1.5, mode="bilinear", recompute_scale_factor=True)
    ),
    "upsample bilinear, antialias": image(lambda m, x: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True)),
    "upsample bicubic": image(lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic")),
    "upsample area": image(lambda m, x: F.interpolate(x, size=(4, 4), mode="area")),
    "upsample to another": image(
        lambda m, x: x + F.interpolate(m.down(x), size=x.shape[-2:], mode="bilinear"), down=later(conv, 8, 8, stride=2)
    ),
    "upsample linear": token(lambda m, x: F.interpolate(x.mT, scale_factor=2, mode="linear").mT),
    "upsample 1d": token(lambda m, x: F.interpolate(x.mT, scale_factor=2).mT),
    "upsample trilinear": Case(
        lambda: Net(
            lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="trilinear")).mean((2, 3, 4)),
            a=nn.Conv3d(3, 8, 1),
            b=nn.Conv3d(8, 4, 1),
        ),
        (VOLUME,),
        8,
    ),
    "upsample 3d": Case(
        lambda: Net(
            lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2)).mean((2, 3, 4)),
            a=nn.Conv3d(3, 8, 1),
            b=nn.Conv3d(8, 4, 1),
        ),
        (VOLUME,),
        8,
    ),
    "grid sample": image(
        lambda m, x: F.grid_sample(x, m.grid.expand(x.shape[0], -1, -1, -1), align_corners=False),
        grid=torch.rand(1, 5, 5, 2) * 2 - 1,
    ),
    "grid sample, learned grid": image(
        lambda m, x: F.grid_sample(x, m.g(x).permute(0, 2, 3, 1).tanh(), mode="nearest", align_corners=True),
        g=later(conv, 8, 2),
    ),
    "spatial transformer": image(
        lambda m, x: F.grid_sample(
            x, F.affine_grid(m.l(x.mean((2, 3))).view(-1, 2, 3), x.shape, align_corners=False), align_corners=False
        ),
        l=later(nn.Linear, 8, 6),
    ),
    "grid sample 3d": Case(
        lambda: Net(
            lambda m, x: m.b(F.grid_sample(m.a(x), m.g.expand(x.shape[0], -1, -1, -1, -1), align_corners=False)).mean(
                (2, 3, 4)
            ),
            a=nn.Conv3d(3, 8, 1),
            b=nn.Conv3d(8, 4, 1),
            g=torch.rand(1, 2, 2, 2, 3),
        ),
        (VOLUME,),
        8,
    ),
}

CASES: dict[str, Case] = {**NORMALISATION, **POOLING}
