"""Twelve networks, dense and at half of their MACs, written for every runtime that is installed: right, or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from edgeprune import analyze, capture, cut, plan
from edgeprune.errors import InputError, ParityError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.target import Inputs, Material, Target
from edgeprune.export.targets import targets_of
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program
from edgeprune.graph.specs import input_specs
from edgeprune.measure.latency import measure_runners
from edgeprune.progress import Silent
from edgeprune.records import ModelInfo

RUNTIMES = ("ort", "litert", "coreml", "openvino", "ncnn", "executorch")
KEEP_MACS = 0.5
_PIXELS = 96
_SECONDS = 8.0
Cell = dict[str, Any]


class Recurrent(nn.Module):
    """Sensor rows through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 64, batch_first=True), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, steps, 6)` to `(batch, 5)`."""
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
        self.table, self.places = nn.Embedding(100, 64), nn.Parameter(torch.randn(16, 64) / 8)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """`(batch, 16)` to `(batch, 4)`."""
        return self.head(self.encoder(self.table(ids) + self.places).mean(1))


class Two(nn.Module):
    """An image and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(3, 32), nn.MaxPool2d(2), _block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.side, self.head = nn.Linear(8, 32), nn.Linear(96, 5)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        """`(batch, 3, 32, 32)` and `(batch, 8)` to `(batch, 5)`."""
        return self.head(torch.cat([self.body(image), self.side(row).relu()], 1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def _cnn() -> nn.Module:
    body = [_block(3, 32), nn.MaxPool2d(2), _block(32, 64), nn.MaxPool2d(2), _block(64, 96), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(96, 10))


def _images(n_pixels: int = _PIXELS) -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, n_pixels, n_pixels),)


def _torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return getattr(torchvision.models, name)(num_classes=10), _images()


def _timm(name: str, **options: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return timm.create_model(name, num_classes=10, **options), _images()


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "mlp": lambda: (_mlp(), (torch.randn(2, 64),)),
    "cnn": lambda: (_cnn(), _images(32)),
    "lstm": lambda: (Recurrent(), (torch.randn(2, 20, 6),)),
    "u-net": lambda: (UNet(), _images(32)),
    "resnet18": lambda: _torchvision("resnet18"),
    "mobilenet_v2": lambda: _torchvision("mobilenet_v2"),
    "efficientnet_b0": lambda: _torchvision("efficientnet_b0"),
    "shufflenet_v2": lambda: _torchvision("shufflenet_v2_x1_0"),
    "convnext_atto": lambda: _timm("convnext_atto"),
    "vit_tiny": lambda: _timm("vit_tiny_patch16_224", img_size=_PIXELS),
    "text": lambda: (Text(), (torch.randint(0, 100, (2, 16)),)),
    "two inputs": lambda: (Two(), (*_images(32), torch.randn(2, 8))),
}


def compare(name: str, runtimes: tuple[str, ...] = RUNTIMES) -> dict[str, Any]:
    """One network by each runtime: both files with their errors, or why not, and the ratio of their times."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = NETWORKS[name]()
    program = capture(_settled(model, inputs), inputs[0] if len(inputs) == 1 else inputs)
    slim = cut(program, plan(program, analyze(program), keep_macs=KEEP_MACS))
    found: dict[str, Any] = {"name": name}
    with tempfile.TemporaryDirectory() as folder:
        materials = [_material(one, Path(folder) / kind) for one, kind in ((program, "dense"), (slim, "slim"))]
        for runtime in runtimes:
            found[runtime] = _cell(runtime, *materials)
    return found


def _settled(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Random weights whose batch norms have seen data, so that outputs depend on inputs."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(*(torch.randn_like(x) if x.is_floating_point() else x for x in inputs))
    return model.eval()


def _material(program: Program, folder: Path) -> Material:
    folder.mkdir()
    specs = input_specs(program)
    info = ModelInfo(tuple(specs[0].example[1:]))
    save_program(folder / "net.pt2", program, info)
    model = load(folder / "net.pt2")
    front = NamedFront.of(model.program, None, (), False) if len(specs) > 1 else None
    write_contracts(model.program, info, folder, name="net", simplify=True)
    return Material(model, info, folder, "net", front=front)


def _cell(runtime: str, dense: Material, slim: Material) -> Cell:
    """Both files, and the time of the slim one over the dense one's, run by run in turn."""
    [target] = targets_of([runtime])
    try:
        target.check_installed()
    except InputError as error:
        return {"missing": str(error)}
    cell: Cell = {kind: _written(target, one) for kind, one in (("dense", dense), ("slim", slim))}
    if target.runtime is None or any("refused" in cell[kind] for kind in ("dense", "slim")):
        return cell
    runners = []
    for one in (dense, slim):
        samples = one.samples(1)
        given = Inputs(samples.file, samples.program, samples.full)
        runners.append(target.runtime.runner(one.folder / target.files("net")[0], given))
    if None in runners:
        return cell
    medians = np.median(measure_runners(runners, max_seconds=_SECONDS), axis=0)  # type: ignore[arg-type]
    return {**cell, "dense_ms": round(float(medians[0]), 4), "ratio": round(float(medians[1] / medians[0]), 3)}


def _written(target: Target, material: Material) -> Cell:
    try:
        target.check(material.program)
        first = target.write(material, Silent())[0]
    except (InputError, ParityError) as error:
        return {"refused": str(error)}
    return {"error": first.parity, "bytes": first.size_bytes}
