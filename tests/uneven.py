"""A network that int8 costs much: channels of very different size in one tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgeprune import capture
from edgeprune.data import open_data
from edgeprune.formats.save import save_program
from edgeprune.records import ModelInfo
from edgeprune.settings import TrainSettings
from edgeprune.training import fit


def uneven_network(folder: Path) -> Path:
    """A trained network whose channels were scaled up and down again between layers: in float it is the same."""
    data = open_data("digits")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    fit(net, data, data.normalization, TrainSettings(epochs=10, lr=1e-2, batch_size=64))
    with torch.no_grad():
        for norm, after, shape in ((net[1], net[3], (-1, 1, 1, 1)), (net[4], net[6], (1, -1, 1, 1))):
            factors = torch.logspace(0, 2, 16)[torch.randperm(16)]
            norm.weight *= factors
            norm.bias *= factors
            after.weight /= factors.reshape(shape)
    path = folder / "uneven.pt2"
    info = ModelInfo((1, 8, 8), normalization=data.normalization, classes=tuple(data.classes))
    save_program(path, capture(net.eval(), torch.zeros(2, 1, 8, 8)), info)
    return path
