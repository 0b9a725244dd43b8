"""Networks for other jobs than telling classes apart by one image: a table, masks, sensors, two inputs, words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Regressor(nn.Module):
    """Two hidden layers over a row of a table; what they give out is brought to the scale of the target."""

    def __init__(self, n_columns: int, width: int, mean: float, std: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_columns, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, n_columns)` in, `(batch, 1)` out."""
        out: Tensor = self.layers(x)
        return out * self.std + self.mean


def regressor(n_columns: int = 10, width: int = 64, mean: float = 152.0, std: float = 77.0) -> nn.Module:
    """The network, for a target of this mean and standard deviation: by default those of scikit-learn's diabetes."""
    return Regressor(n_columns, width, mean, std)


class Double(nn.Sequential):
    """Two 3x3 convolutions with batch norm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            *(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
            *(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()),
        )


class UNet(nn.Module):
    """A U-Net of one level: what is seen at full size is joined to what is seen at half size.

    Ronneberger, Fischer and Brox, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015.
    """

    def __init__(self, n_classes: int, width: int, in_channels: int) -> None:
        super().__init__()
        self.down, self.middle = Double(in_channels, width), Double(width, 2 * width)
        self.up, self.join = nn.ConvTranspose2d(2 * width, width, 2, stride=2), Double(2 * width, width)
        self.head = nn.Conv2d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(batch, in_channels, h, w)` in, scores `(batch, n_classes, h, w)` out; h and w are even."""
        whole = self.down(x)
        half = self.middle(F.max_pool2d(whole, 2))
        out: Tensor = self.head(self.join(torch.cat([whole, self.up(half)], dim=1)))
        return out


def unet(n_classes: int = 2, width: int = 16, in_channels: int = 1) -> nn.Module:
    """The U-Net."""
    return UNet(n_classes, width, in_channels)


class Gathering(nn.Module):
    """What is seen in an image beside what stands in a row of a table."""

    def __init__(self, n_columns: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.see = nn.Sequential(Double(1, width), nn.MaxPool2d(2), Double(width, 2 * width), nn.AdaptiveAvgPool2d(1))
        self.read = nn.Sequential(nn.Linear(n_columns, 2 * width), nn.ReLU())
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        """Images `(batch, 1, h, w)` and rows `(batch, n_columns)` in, scores `(batch, n_classes)` out."""
        out: Tensor = self.head(torch.cat([self.see(image).flatten(1), self.read(table)], dim=1))
        return out


def gathering(n_columns: int = 16, n_classes: int = 10, width: int = 16) -> nn.Module:
    """The network with two inputs."""
    return Gathering(n_columns, n_classes, width)


class Reader(nn.Module):
    """The mean of the words that the mask leaves in, and a hidden layer over it."""

    def __init__(self, vocabulary: int, n_classes: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, n_classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Whole numbers `(batch, length)` and 0 or 1 beside them in, scores `(batch, n_classes)` out."""
        mask = attention_mask[..., None].to(self.words.weight.dtype)
        out: Tensor = self.layers((self.words(input_ids) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return out


def reader(vocabulary: int = 40, n_classes: int = 3, width: int = 16) -> nn.Module:
    """The network over words."""
    return Reader(vocabulary, n_classes, width)


def signals(n_channels: int = 14, n_classes: int = 5, width: int = 32) -> nn.Module:
    """Convolutions over time, then its mean: `(batch, n_channels, n_steps)` in, `(batch, n_classes)` out."""
    layers: list[nn.Module] = []
    before = n_channels
    for after in (width, 2 * width, 2 * width):
        layers += [nn.Conv1d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(before, n_classes))
