"""Tiny networks, one for each rule, and the check that they all go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.masked import masked
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan


class Net(nn.Module):
    """A network from named parts and a function: `Net(lambda m, x: m.b(m.a(x)), a=..., b=...)`."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@dataclass(frozen=True)
class Case:
    """A network, the shapes of its inputs without the batch, and how many units can be removed from it."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    units: int
    label_inputs: bool = False
    exact: bool = True


@dataclass(frozen=True)
class Cut:
    """A dense program, its groups, a plan and the slim program."""

    program: Program
    graph: ChannelGraph
    plan: PruningPlan
    slim: Program
    error: float


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """No weight, bias or statistic is trivial (zero, one), so that a wrong cut shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in sorted(module.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            spread = max(tensor[0].numel(), 1) ** -0.5 if tensor.dim() > 1 else 0.5
            tensor.copy_(noise * spread + (0.1 if tensor.dim() > 1 else 0.0))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.abs_().add_(0.5)
    return module


def sample(shapes: tuple[tuple[int, ...], ...], batch: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def random_keep(graph: ChannelGraph, share: float, seed: int) -> np.ndarray:
    """About `share` of every group's units, at least one of each."""
    generator = np.random.default_rng(seed)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        n_removed = min(group.n_units - 1, max(1, round(group.n_units * (1 - share))))
        keep[generator.permutation(group.units)[:n_removed]] = False
    return keep


def n_units(graph: ChannelGraph) -> int:
    return sum(group.n_units for group in graph.groups)


def captured(module: nn.Module, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Program:
    return edgeprune.capture(randomized(module).to(dtype), sample(shapes, 2, dtype))


def cut_randomly(program: Program, graph: ChannelGraph, share: float = 0.6, seed: int = 0) -> Cut:
    """Remove random units of every group; the cut is proved (1e-10 in float64, 1e-5 in float32)."""
    plan = make_plan(program, graph, random_keep(graph, share, seed))
    slim = edgeprune.cut(program, plan, graph)
    return Cut(program, graph, plan, slim, edgeprune.prove(program, slim, plan))


def run(network: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*inputs)) if isinstance(leaf, Tensor)]


def relative_error(expected: list[Tensor], got: list[Tensor]) -> float:
    errors = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, got, strict=True)]
    return max(errors)


def distance(cut: Cut, shapes: tuple[tuple[int, ...], ...], batch: int = 5) -> tuple[float, float]:
    """Slim against masked dense, and masked against dense (so that the first is not vacuous), at another batch size."""
    inputs = sample(shapes, batch, next(iter(cut.program.parameters())).dtype)
    reference = run(masked(cut.program, cut.plan), inputs)
    return relative_error(reference, run(cut.slim.module(), inputs)), relative_error(
        run(cut.program.module(), inputs), reference
    )


def macs_of(program: ExportedProgram) -> int:
    from edgeprune.cost.macs import macs

    return macs(program)


def n_parameters(program: ExportedProgram) -> int:
    return sum(p.numel() for p in program.parameters())


# -- networks that several test files share ---------------------------------------------------------------------------


def mlp(n_inputs: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(n_inputs, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def image_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def residual() -> nn.Module:
    """A stem of 8 channels, a block that adds to it (inner width 6), a downsampling block (width 10), a head."""
    return Net(
        lambda m, x: m.head(block(m, m.stem(x).relu()).mean((2, 3))),
        stem=nn.Conv2d(3, 8, 3, padding=1),
        a=nn.Conv2d(8, 6, 3, padding=1),
        norm=nn.BatchNorm2d(6),
        b=nn.Conv2d(6, 8, 3, padding=1),
        down=nn.Conv2d(8, 10, 1, stride=2),
        c=nn.Conv2d(8, 10, 3, stride=2, padding=1),
        head=nn.Linear(10, 4),
    )


def block(m: Any, x: Tensor) -> Tensor:
    x = (x + m.b(m.norm(m.a(x)).relu())).relu()
    return (m.down(x) + m.c(x)).relu()


class TiedAutoencoder(nn.Module):
    """The decoder is the transposed encoder, and a second layer shares the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8, bias=False)
        self.b = nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(torch.relu(self.a(x))))


class Shared(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(self.first(x).relu()).relu()))
