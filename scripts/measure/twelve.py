"""Twelve networks of the kinds and sizes that devices run, with random weights.

Of much smaller ones a runtime's own time per call would be measured, not the network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from measure.networks import randomize
from measure.transformers_networks import settle_batch_norms

_PIXELS = 96
_N = 8  # samples that batch norms take their statistics of


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in eval mode, and inputs `(8, ...)`.

    What starts as a constant (affine parameters, layer scales) is random, and each batch norm has the statistics of
    what it reads, so that no branch is trivial and outputs depend on inputs.
    """
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    randomize(model)
    settle_batch_norms(model.eval(), inputs)
    return model, inputs


class Recurrent(nn.Module):
    """Sensor rows through an LSTM, as of two seconds of a phone's accelerometers and gyroscope."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(9, 128, batch_first=True), nn.Linear(128, 6)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps, 9)` to `(batch, 6)`."""
        return self.head(self.lstm(x)[0][:, -1])


class UNet(nn.Module):
    """Two levels down and up, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 16), _block(16, 32), _block(32, 64)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.join, self.head = nn.ModuleList([_block(64, 32), _block(32, 16)]), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, 3, h, w)` to `(batch, 2, h, w)`."""
        skips = []
        for block in self.down[:-1]:
            skips.append(block(x))
            x = nn.functional.max_pool2d(skips[-1], 2)
        x = self.down[-1](x)
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), skips.pop()], 1))
        return self.head(x)


def _block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU())


class Text(nn.Module):
    """Ids through two layers of a transformer's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(1000, 128), nn.Parameter(torch.randn(64, 128) / 8)
        layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(128, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """`(batch, 64)` to `(batch, 4)`."""
        return self.head(self.encoder(self.table(ids) + self.places).mean(1))


class Two(nn.Module):
    """An image and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(3, 32), nn.MaxPool2d(2), _block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.side, self.head = nn.Linear(8, 32), nn.Linear(96, 5)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        """`(batch, 3, 64, 64)` and `(batch, 8)` to `(batch, 5)`."""
        return self.head(torch.cat([self.body(image), self.side(row).relu()], 1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))


def _cnn() -> nn.Module:
    body = [_block(3, 32), nn.MaxPool2d(2), _block(32, 64), nn.MaxPool2d(2), _block(64, 96), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(96, 10))


def _images(n_pixels: int = _PIXELS) -> tuple[Tensor, ...]:
    return (torch.randn(_N, 3, n_pixels, n_pixels),)


def _torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return getattr(torchvision.models, name)(num_classes=10), _images()


def _timm(name: str, **options: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return timm.create_model(name, num_classes=10, **options), _images()


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "mlp": lambda: (_mlp(), (torch.randn(_N, 784),)),
    "cnn": lambda: (_cnn(), _images(32)),
    "lstm": lambda: (Recurrent(), (torch.randn(_N, 128, 9),)),
    "u-net": lambda: (UNet(), _images()),
    "resnet18": lambda: _torchvision("resnet18"),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "shufflenet_v2": lambda: _torchvision("shufflenet_v2_x1_0"),
    "convnext_atto": lambda: _timm("convnext_atto"),
    "vit_tiny": lambda: _timm("vit_tiny_patch16_224", img_size=_PIXELS),
    "text": lambda: (Text(), (torch.randint(0, 1000, (_N, 64)),)),
    "two inputs": lambda: (Two(), (*_images(64), torch.randn(_N, 8))),
}
