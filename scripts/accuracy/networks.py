"""The trained networks of the benchmark: what they are, what they were trained on, and where their weights are kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from edgeprune.data import open_data
from edgeprune.records import DataSource
from measure.small import ViT, mobilenet, resnet
from measure.training import train

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from models.cifar_resnet import resnet20  # noqa: E402
from models.lenet import lenet_300_100  # noqa: E402

_LR = 3e-3


@dataclass(frozen=True, slots=True)
class Network:
    """A network of ten classes, and the data that it takes: a name that edgeprune knows."""

    make: Callable[[], nn.Module]
    data: str


def lenet_5() -> nn.Module:
    """LeCun et al. 1998, as the pruning literature has it: two convolutions of 20 and 50 channels, 500 units."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )


NETWORKS: Mapping[str, Network] = {
    "resnet": Network(resnet, "fashion-mnist"),
    "resnet20": Network(lambda: resnet20(in_channels=1), "fashion-mnist"),
    "mobilenet": Network(mobilenet, "fashion-mnist"),
    "vit": Network(ViT, "fashion-mnist"),
    "mlp": Network(lenet_300_100, "fashion-mnist"),
    "lenet-300-100": Network(lenet_300_100, "mnist"),
    "lenet-5": Network(lenet_5, "mnist"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A trained network, what it was trained on, and inputs to capture it with."""

    model: nn.Module
    data: DataSource
    example: Tensor


@dataclass(frozen=True, slots=True)
class Effort:
    """How long is trained: epochs of the dense network and of a finetuning, and images in each."""

    epochs: int
    finetune_epochs: int
    images: int


def trained(name: str, seed: int, effort: Effort, roots: Mapping[str, str], kept: Path) -> Dense:
    """The network with its weights: those of an earlier run, or trained now and kept.

    Args:
        roots: the folder of a data set's files, where it is not the usual one.
        kept: the folder for weights.
    """
    network = NETWORKS[name]
    root = roots.get(network.data)
    data = open_data(f"{network.data}:{root}" if root else network.data, seed=0)
    torch.manual_seed(seed)
    model = network.make()
    path = kept / f"{name}-{seed}-{effort.epochs}x{effort.images}.safetensors"
    if path.is_file():
        load_model(model, path)
    else:
        train(model, data, effort.epochs, effort.images, _LR)
        kept.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
    return Dense(model.eval(), data, torch.zeros(2, *data.input_shape))
