"""Cut programs: gathered inputs, training, saving, and being cut again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cost.macs import macs
from edgeprune.formats.digests import digest
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.records import InputFeatures, ModelInfo
from tests.cases import CASES, IMAGE
from tests.nets import (
    Net,
    captured,
    cnn,
    cut_randomly,
    distance,
    image_mlp,
    mlp,
    n_parameters,
    relative_error,
    residual,
    run,
    sample,
)

GATHER = "edgeprune_keep_input"


def with_features(module: nn.Module, shape: tuple[int, ...], n_features: int) -> tuple[Program, PruningPlan, Program]:
    program = captured(module, shape)
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=None, n_features=n_features)
    return program, plan, edgeprune.cut(program, plan, graph)


def only_input(plan: PruningPlan) -> InputFeatures:
    (features,) = plan.inputs.values()
    return features


def ignores_the_rest(slim: Program, features: InputFeatures, shape: tuple[int, ...]) -> bool:
    """Whether the features that are not kept change nothing, and the kept ones do."""
    (x,) = sample((shape,), 3)
    removed = np.setdiff1d(np.arange(features.size), features.keep)
    flat = (lambda t: t.flatten(1)) if features.dim is None else (lambda t: t)
    without, changed = x.clone(), x.clone()
    flat(without)[:, removed] = 1e6
    flat(changed)[:, features.keep[0]] += 1.0
    module = slim.module()
    same, other = torch.equal(module(x), module(without)), torch.equal(module(x), module(changed))
    return same and not other


FEATURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, InputFeatures | None, int]] = {
    # name: network, input shape, features to keep, (size, dim) expected, columns of the first layer that stay
    "flattened image": (image_mlp, (1, 4, 4), 5, InputFeatures(16, (), None), 5),
    "table": (mlp, (8,), 3, InputFeatures(8, (), 1), 3),
    "channels of an image": (cnn, IMAGE, 2, InputFeatures(3, (), 1), 2),
    "scaled before the flatten": (
        lambda: Net(lambda m, x: m.l(((x / 255 - 0.5) * 2).flatten(1)), l=nn.Linear(16, 3)), (1, 4, 4), 6,
        InputFeatures(16, (), None), 6),
    "per-pixel constants before the flatten": (
        lambda: Net(lambda m, x: m.l(((x - m.mean) / 3).flatten(1)), l=nn.Linear(16, 3), mean=torch.ones(1, 4, 4)),
        (1, 4, 4), 6, InputFeatures(16, (), None), 6),
    "transposed before the flatten": (
        lambda: Net(lambda m, x: m.l(x.transpose(2, 3).flatten(1)), l=nn.Linear(15, 3)), (1, 3, 5), 4,
        InputFeatures(15, (), None), 4),
    "half of the columns": (
        lambda: Net(lambda m, x: m.a(x[:, :4]) + m.b(x[:, 4:]), a=nn.Linear(4, 3), b=nn.Linear(6, 3)), (10,), 5,
        InputFeatures(10, (), 1), -1),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FEATURES)
def test_input_features(name: str) -> None:
    build, shape, n_features, expected, columns = FEATURES[name]
    program, plan, slim = with_features(build(), shape, n_features)
    features = only_input(plan)
    assert expected is not None
    assert (features.size, features.dim, len(features.keep)) == (expected.size, expected.dim, n_features)
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    assert ignores_the_rest(slim, features, shape)
    assert n_parameters(slim) < n_parameters(program)
    if columns >= 0:
        first = next(p for name, p in slim.state_dict.items() if p.dim() > 1 and "weight" in name)
        assert first.shape[1] == columns


def test_the_gather_holds_the_kept_features() -> None:
    _, plan, slim = with_features(image_mlp(), (1, 4, 4), 5)
    assert slim.state_dict[GATHER].tolist() == list(only_input(plan).keep)


def test_a_gathered_program_is_narrowed_when_it_is_cut_again() -> None:
    program, _, slim = with_features(image_mlp(), (1, 4, 4), 9)
    graph = edgeprune.analyze(slim, inputs=True)
    assert [group.n_units for group in graph.groups if group.is_input] == [9]
    plan = edgeprune.plan(slim, graph, keep_macs=None, n_features=4)
    again = edgeprune.cut(slim, plan, graph)
    assert edgeprune.prove(slim, again, plan) <= 1e-10
    assert [name for name in again.state_dict if name.startswith("edgeprune_keep_")] == [GATHER]
    kept, before = again.state_dict[GATHER].tolist(), slim.state_dict[GATHER].tolist()
    assert len(kept) == 4 and set(kept) < set(before)
    assert tuple(only_input(plan).keep) == tuple(kept)
    (x,) = sample(((1, 4, 4),), 3)
    assert again.module()(x).shape == program.module()(x).shape


def test_the_source_program_is_unchanged() -> None:
    program = captured(cnn(), IMAGE)
    before, name = {n: t.clone() for n, t in program.state_dict.items()}, digest(program)
    cut_randomly(program, edgeprune.analyze(program))
    assert digest(program) == name
    assert all(torch.equal(before[n], t) for n, t in program.state_dict.items())


def test_names_stay() -> None:
    program = captured(residual(), IMAGE)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert list(slim.state_dict) == list(program.state_dict)
    assert [n for n, _ in slim.named_parameters()] == [n for n, _ in program.named_parameters()]


def test_weights_are_the_kept_slices() -> None:
    program = captured(residual(), IMAGE)
    cut = cut_randomly(program, edgeprune.analyze(program))
    for name, tensor in program.state_dict.items():
        for dim, kept in cut.plan.tensors.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(kept))
        assert torch.equal(cut.slim.state_dict[name], tensor)


def test_tied_weights_stay_tied() -> None:
    program = captured(CASES["shared"].build(), (5,))
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    parameters = dict(slim.module().named_parameters(remove_duplicate=False))
    assert parameters["a.weight"] is parameters["b.weight"]
    assert parameters["a.weight"].shape[0] < 6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["cnn", "squeeze-excite", "transformer layer", "fused attention"])
def test_a_slim_program_trains(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes, dtype=torch.float32)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    module = slim.module().train()
    (x,) = sample(case.shapes, 32, torch.float32)
    target = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(2)) * 0.1
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    losses = []
    for _ in range(12):
        loss = nn.functional.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = {n: not torch.equal(t, slim.state_dict[n]) for n, t in module.state_dict().items() if "running" in n}
    assert all(moved.values()) and (name != "cnn" or len(moved) == 4)


def test_a_slim_program_with_writes_trains() -> None:
    """Values that are assigned to slices, in their own shape and broadcast."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.new_zeros(x.shape[0], 18, 8, 8)
        y[:, :8] = m.a(x)
        y[:, 8:16] = m.b(x.mean((2, 3), keepdim=True))
        y[:, -1] = 0.5
        return m.head(y.relu().mean((2, 3)))

    net = Net(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(3, 8, 1), head=nn.Linear(18, 4))
    program = captured(net, (3, 8, 8))
    cut = cut_randomly(program, edgeprune.analyze(program))
    assert distance(cut, ((3, 8, 8),))[0] <= 1e-10
    module = cut.slim.module()
    module(*sample(((3, 8, 8),), 5)).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())
    assert cut.slim.state_dict["a.weight"].shape[0] < 8 and cut.slim.state_dict["b.weight"].shape[0] < 8


def test_a_trained_module_can_be_captured_and_cut_again() -> None:
    program = captured(cnn(), IMAGE)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    module = slim.module().train()
    module(*sample((IMAGE,), 8))
    again = edgeprune.capture(module.eval(), sample((IMAGE,), 2))
    cut = cut_randomly(again, edgeprune.analyze(again), seed=1)
    assert cut.error <= 1e-10
    assert macs(cut.slim) < macs(slim) < macs(program)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["cnn", "fused attention", "channel shuffle", "slices", "mean over channels"])
def test_a_slim_program_is_cut_again(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes)
    slim = cut_randomly(program, edgeprune.analyze(program), share=0.8).slim
    cut = cut_randomly(slim, edgeprune.analyze(slim), seed=1)
    assert cut.error <= 1e-10
    assert n_parameters(cut.slim) < n_parameters(slim)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["cnn", "fused attention", "constant mask", "slices", "image mlp inputs"])
def test_a_slim_program_saves_and_loads(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes, dtype=torch.float32)
    slim = cut_randomly(program, edgeprune.analyze(program, inputs=case.label_inputs)).slim
    save_program(tmp_path / "slim.pt2", slim, ModelInfo(case.shapes[0]))
    loaded = load(tmp_path / "slim.pt2")
    inputs = sample(case.shapes, 3, torch.float32)
    assert relative_error(run(slim.module(), inputs), run(loaded.program.module(), inputs)) == 0.0
    assert loaded.sha256 == digest(slim)
    cut = cut_randomly(Program.adopt(loaded.program), edgeprune.analyze(loaded.program), seed=2)
    assert cut.error <= 1e-5


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.auxiliary = nn.Linear(4, 6), nn.Linear(6, 9)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.used(x).relu()
        self.auxiliary(hidden)
        return self.head(hidden)


def test_layers_that_nothing_reads_do_not_stand_in_the_way() -> None:
    program = captured(Unused(), (4,))
    graph = edgeprune.analyze(program)
    cut = cut_randomly(program, graph)
    assert cut.error <= 1e-10
    assert cut.slim.state_dict["used.weight"].shape[0] < 6
    assert "auxiliary.weight" not in cut.slim.state_dict


def test_a_part_that_loses_all_of_its_units_leaves_the_join() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        kept, pooled = m.first(x).split(4, dim=1)
        return m.second(torch.cat([kept.relu(), nn.functional.avg_pool2d(pooled, 3, 1, 1)], dim=1))

    net = Net(forward, first=nn.Conv2d(3, 8, 1), second=nn.Conv2d(8, 4, 1))
    program = captured(net, IMAGE)
    graph = edgeprune.analyze(program)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    units = graph.labels("tensor", "first.weight", 0)
    assert units is not None
    keep[units[4:]] = False
    plan = make_plan(program, graph, keep)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    assert slim.module()(torch.randn(2, *IMAGE, dtype=torch.float64)).shape[1] == 4
