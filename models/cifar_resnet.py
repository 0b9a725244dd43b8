"""Residual networks for images of about 32x32: ResNet8, ResNet20 and ResNet56, and ResNet18 with a small stem.

He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016: ResNet20 and ResNet56 are those of its
section 4.2, and ResNet8 has one block where ResNet20 has three. Where a stage begins, the shortcut is a 1x1
convolution with batch norm (option B of the paper), as the pruning literature mostly has it: the paper's own networks
for CIFAR pad the shortcut with zero channels (option A), which have no weights, so that the channels that meet them
cannot be removed. `shortcut="pad"` gives these.

ResNet18 is the ImageNet network with a stem of one 3x3 convolution, without max pooling, as networks are trained on
CIFAR since; sparse training with xRDA (Siegel et al., arXiv 2008.09661) was published on it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; the first may halve height and width."""

    def __init__(self, before: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            self.shortcut = SHORTCUTS[shortcut](before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, before, h, w)` in, `(batch, width, h / stride, w / stride)` out."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Projection(nn.Sequential):
    """A 1x1 convolution with batch norm (option B)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class Padding(nn.Module):
    """Every `stride`-th position, between as many zero channels on both sides (option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.n_zeros, self.stride = (width - before) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, before, h, w)` in, `(batch, width, h / stride, w / stride)` out."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.n_zeros, self.n_zeros))


SHORTCUTS: dict[str, type[nn.Module]] = {"projection": Projection, "pad": Padding}


def residual(
    n_blocks: tuple[int, ...], widths: tuple[int, ...], in_channels: int, n_classes: int, shortcut: str
) -> nn.Module:
    """A 3x3 stem, then for each stage so many blocks of so many channels, then the mean over positions.

    Every stage but the first halves height and width.
    """
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut: expected {' or '.join(SHORTCUTS)}, got {shortcut!r}")
    stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, (n, width) in enumerate(zip(n_blocks, widths, strict=True)):
        for block in range(n):
            layers.append(Block(before, width, 2 if stage > 0 and block == 0 else 1, shortcut))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, n_classes))


def resnet8(in_channels: int = 3, n_classes: int = 10, shortcut: str = "projection") -> nn.Module:
    """ResNet8, one block a stage: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return residual((1, 1, 1), (16, 32, 64), in_channels, n_classes, shortcut)


def resnet20(in_channels: int = 3, n_classes: int = 10, shortcut: str = "projection") -> nn.Module:
    """ResNet20: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return residual((3, 3, 3), (16, 32, 64), in_channels, n_classes, shortcut)


def resnet56(in_channels: int = 3, n_classes: int = 10, shortcut: str = "projection") -> nn.Module:
    """ResNet56: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return residual((9, 9, 9), (16, 32, 64), in_channels, n_classes, shortcut)


def resnet18(in_channels: int = 3, n_classes: int = 10) -> nn.Module:
    """ResNet18 with a 3x3 stem: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return residual((2, 2, 2, 2), (64, 128, 256, 512), in_channels, n_classes, "projection")
