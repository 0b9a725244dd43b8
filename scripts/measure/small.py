"""Small networks for 28 x 28 grey images, trained for a few minutes on a CPU: what is cut, has something to lose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after))
        projection = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity() if before == after else projection

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(self.first(x)))


class Inverted(nn.Module):
    """A bottleneck inside out, whose wide part is a depthwise convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 4 * before
        self.layers = nn.Sequential(
            *(nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.is_residual = before == after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


class Pooled(nn.Module):
    """Mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def stem() -> list[nn.Module]:
    return [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]


def resnet() -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels."""
    return nn.Sequential(*stem(), Basic(16, 16, 1), Basic(16, 32, 2), Basic(32, 64, 2), Pooled(), nn.Linear(64, 10))


def mobilenet() -> nn.Module:
    """Four inverted bottlenecks."""
    blocks = [Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1), Inverted(24, 40, 2)]
    return nn.Sequential(*stem(), *blocks, Pooled(), nn.Linear(40, 10))


class Transformer(nn.Module):
    """A layer of an encoder, normalised first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.between, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        split = self.qkv(self.before(x)).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.between(x))))


class ViT(nn.Module):
    """Patches of 4 x 4, three layers of four heads."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, width, 4, 4), nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.layers = nn.Sequential(*(Transformer(width, 4, 2 * width) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


def mlp() -> nn.Module:
    """784-256-128-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet": resnet, "mobilenet": mobilenet, "vit": ViT, "mlp": mlp}
