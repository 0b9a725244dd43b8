"""Two networks for the 8x8 digits; both take normalised images `(batch, 1, 8, 8)` and give logits `(batch, 10)`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def mlp(hidden: Sequence[int] = (256, 128), dropout: float = 0.3, input_dropout: float = 0.1) -> nn.Module:
    """Fully connected layers over the 64 flattened pixels.

    Pixels are dropped in training too: it stands in for the augmentation that 1,079 training images would want, and
    leaves a network that does not lean on any one pixel.
    """
    layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(input_dropout)]
    width = 64
    for n_units in hidden:
        layers += [nn.Linear(width, n_units), nn.ReLU(), nn.Dropout(dropout)]
        width = n_units
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, h, w)` in and out."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


def cnn(width: int = 32, dropout: float = 0.2) -> nn.Module:
    """A small residual network: `width` channels at 8x8, twice as many at 4x4, then the mean over positions."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        Residual(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, 10),
    )
