"""DenseNet40 for images of about 32x32: every layer reads what all earlier ones of its block have made.

Huang, Liu, van der Maaten and Weinberger, Densely Connected Convolutional Networks, CVPR 2017: the network without
bottlenecks and without compression, L = 40 and k = 12 (table 2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEM = 16


class Layer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose `growth` channels come behind what it reads."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(before)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, before, h, w)` in, `(batch, before + growth, h, w)` out."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


def densenet40(growth: int = 12, in_channels: int = 3, n_classes: int = 10) -> nn.Module:
    """DenseNet40: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    width = STEM
    layers: list[nn.Module] = [nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)]
    for block in range(3):
        if block > 0:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)]
        for _ in range(12):
            layers.append(Layer(width, growth))
            width += growth
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, n_classes))
