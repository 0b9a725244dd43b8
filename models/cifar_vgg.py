"""VGG16 and VGG19 with batch norm for images of about 32x32: one linear layer, no hidden ones.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, in the form that
the pruning literature trains on CIFAR (Liu et al., Network Slimming, ICCV 2017): four max poolings, then the mean over
the positions that are left (2x2 of 32x32, the only one of 28x28), and convolutions without a bias before batch norm.
"""

from __future__ import annotations

from torch import nn

WIDTHS = (64, 128, 256, 512, 512)


def vgg(n_convs: tuple[int, ...], in_channels: int, n_classes: int) -> nn.Module:
    """For each stage so many 3x3 convolutions with batch norm and ReLU, max pooling between the stages."""
    layers: list[nn.Module] = []
    before = in_channels
    for stage, (n, width) in enumerate(zip(n_convs, WIDTHS, strict=True)):
        if stage > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(n):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, n_classes))


def vgg16_bn(in_channels: int = 3, n_classes: int = 10) -> nn.Module:
    """VGG16 with batch norm: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return vgg((2, 2, 3, 3, 3), in_channels, n_classes)


def vgg19_bn(in_channels: int = 3, n_classes: int = 10) -> nn.Module:
    """VGG19 with batch norm: images `(batch, in_channels, h, w)` in, logits `(batch, n_classes)` out."""
    return vgg((2, 2, 4, 4, 4), in_channels, n_classes)
