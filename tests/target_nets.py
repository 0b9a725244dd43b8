"""Networks that the files of several runtimes are made of, saved as `export` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.data import normalize
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.groups import analyze
from edgeprune.pruning.planner import plan
from edgeprune.pruning.slim_inputs import gathered
from edgeprune.pruning.surgery import cut
from edgeprune.records import InputFeatures, ModelInfo, Normalization


class Shuffled(nn.Module):
    """A shuffle of channels between two blocks, as in ShuffleNet; scores and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point, self.side, self.head = nn.Conv2d(24, 32, 1), nn.Conv2d(24, 32, 1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = nn.functional.channel_shuffle(self.stem(x).relu(), 2)
        z = torch.cat([self.point(self.deep(y)).relu(), self.side(y).relu()], 1)
        return {"scores": self.head(z.mean((2, 3))), "map": z[:, :2]}


class Tagger(nn.Module):
    """Ids and floats through an LSTM and a layer norm: whole numbers come out too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm, self.norm = nn.Embedding(11, 8), nn.LSTM(12, 16, batch_first=True), nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.lstm(torch.cat([self.table(ids), x], -1))
        scores = self.head(self.norm(y).relu().mean(1))
        return scores, scores.argmax(1)


class Sensors(nn.Module):
    """A convolution over what sensors, dim 2 of `(batch, steps, sensors)` or of a grid, tell; most tell little."""

    def __init__(self, is_grid: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, padding=1) if is_grid else nn.Conv1d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.conv.weight[:, [1, 4, 5]] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.transpose(1, 2)).relu().flatten(2).mean(2))


class Bessel(nn.Module):
    """An operator that few runtimes have."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.line(x))


def slim_program(net: nn.Module, *inputs: Tensor, keep_macs: float = 0.6) -> Program:
    program = capture(net.eval(), inputs[0] if len(inputs) == 1 else inputs)
    return cut(program, plan(program, analyze(program), keep_macs=keep_macs))


def in_pytorch(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    """All outputs of a saved program."""
    module: Any = torch.export.load(path).module()
    with torch.no_grad():
        outputs = module(*map(torch.from_numpy, arrays))
    return [value.numpy() for value in torch.utils._pytree.tree_leaves(outputs)]


def saved_shuffled(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Half of a `Shuffled` network for images of this shape, scaled before they are given."""
    torch.manual_seed(0)
    slim = slim_program(Shuffled(), torch.randn(2, *shape))
    save_program(folder / "net.pt2", slim, ModelInfo(shape, normalization=Normalization((0.5,) * 3, (0.25,) * 3)))
    return folder / "net.pt2"


# A gyroscope's values are far below those of a converter that counts from 30,000, where half precision has steps of 16.
SENSORS = Normalization((0.0, -30.0, 5.0, 30000.0, 1.0, 0.0), (1e-2, 50.0, 3.0, 10.0, 0.5, 10.0), dim=2)
SHAPES = {"steps": (20, 6), "grid": (10, 6, 2)}


def saved_sensors(folder: Path, kind: str = "steps") -> Path:
    """A `Sensors` network of raw values that takes three of its six sensors, 0, 2 and 3."""
    torch.manual_seed(0)
    shape = SHAPES[kind]
    program = capture(Sensors(kind == "grid").eval(), torch.randn(2, *shape))
    graph = analyze(program, inputs=True)
    slim = cut(program, plan(program, graph, keep_macs=None, n_features=3), graph)
    assert gathered(slim) == InputFeatures(6, (0, 2, 3), 2)
    save_program(folder / "net.pt2", slim, ModelInfo(shape, normalization=SENSORS))
    return folder / "net.pt2"


def raw_sensors(n_samples: int, kind: str = "steps") -> np.ndarray:
    """Raw values of all six sensors, `(n, steps, 6)` or a grid's, that are normal once they are scaled."""
    mean, std = (np.array(one).reshape(6, *[1] * (len(SHAPES[kind]) - 2)) for one in (SENSORS.mean, SENSORS.std))
    drawn = np.random.default_rng(0).standard_normal((n_samples, *SHAPES[kind]))
    return (drawn * std + mean).astype(np.float32)


def of_sensors(net: Path, raw: np.ndarray) -> np.ndarray:
    """What PyTorch makes of raw values of all sensors."""
    [want] = in_pytorch(net, normalize(torch.from_numpy(raw), SENSORS).numpy())
    return want


def kept_sensors(raw: np.ndarray) -> np.ndarray:
    """The raw values that a slim file with folded preprocessing takes."""
    return np.ascontiguousarray(raw[:, :, [0, 2, 3]])
