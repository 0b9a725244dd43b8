"""Time and memory of every stage over the depth of a network."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import analyze, capture, cut, plan

Record = dict[str, Any]
DEPTHS = (18, 50, 100, 200, 500, 1000)
STAGES = ("capture", "analyze", "plan", "cut")


class Residual(nn.Module):
    """Two convolutions with a shortcut, on `(batch, width, height, width)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of `x` and what the two convolutions make of it."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(x + self.second_norm(self.second(inner)))


class ConvNet(nn.Module):
    """A plain residual network of `depth` convolutions in four stages of doubling widths."""

    def __init__(self, depth: int, widths: Sequence[int] = (16, 24, 32, 48)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for stage, width in enumerate(widths):
            layers.append(nn.Conv2d(before, width, 3, padding=1, stride=1 if stage == 0 else 2))
            layers += [Residual(width) for _ in range(_share(depth // 2 - 2, stage, len(widths)))]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, 10)` of images `(batch, 3, height, width)`."""
        return self.head(self.features(x).mean((2, 3)))


class Transformer(nn.Module):
    """An encoder of `depth` pre-norm layers."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True, norm_first=True) for _ in range(depth))
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, 10)` of sequences `(batch, length, 16)`."""
        return self.head(self.layers(self.embed(x)).mean(1))


def _share(total: int, part: int, parts: int) -> int:
    return total * (part + 1) // parts - total * part // parts


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "residual convolutions": (ConvNet, (2, 3, 16, 16)),
    "transformer": (Transformer, (2, 8, 16)),
}


def measure_depth(kind: str, depth: int) -> Record:
    """Seconds of each stage, and the memory at its end above what the process had before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = NETWORKS[kind]
    model = make(depth).eval()
    _warm_up(make, shape)
    record: Record = {"network": kind, "depth": depth, "seconds": {}, "peak_bytes": {}}
    before = _peak_bytes()

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        record["seconds"][stage] = round(time.perf_counter() - start, 4)
        record["peak_bytes"][stage] = _peak_bytes() - before
        return result

    program = timed("capture", lambda: capture(model, torch.randn(shape)))
    record["nodes"] = len(program.graph.nodes)
    graph = timed("analyze", lambda: analyze(program))
    record["groups"] = len(graph.groups)
    pruning = timed("plan", lambda: plan(program, graph, keep_macs=0.5))
    timed("cut", lambda: cut(program, pruning, graph))
    return record


def _warm_up(make: Callable[[int], nn.Module], shape: tuple[int, ...]) -> None:
    """Load what is loaded once, so that the smallest depth does not pay for it."""
    program = capture(make(8).eval(), torch.randn(shape))
    graph = analyze(program)
    cut(program, plan(program, graph, keep_macs=0.5), graph)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exponents(records: Sequence[Record]) -> Record:
    """Slopes of the logarithms over that of the number of nodes: 1 is linear; `last` is between the two deepest."""
    found: Record = {}
    for kind in dict.fromkeys(record["network"] for record in records):
        mine = sorted((r for r in records if r["network"] == kind), key=lambda r: r["nodes"])
        if len(mine) < 2:
            continue
        nodes = [r["nodes"] for r in mine]
        columns = {stage: [r["seconds"][stage] for r in mine] for stage in STAGES}
        columns["total"] = [sum(r["seconds"].values()) for r in mine]
        columns["memory"] = [max(*r["peak_bytes"].values(), 1) for r in mine]
        found[kind] = {
            name: {"fit": _slope(nodes, values), "last": _slope(nodes[-2:], values[-2:])}
            for name, values in columns.items()
        }
    return found


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return round(float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0]), 3)
