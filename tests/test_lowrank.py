"""Layers split in two: which may be, that the split is proved, what a plan says of it, and which of them go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import ApplyError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.pruning.blocks import plan_blocks, residual_blocks
from edgeprune.pruning.compose import compose
from edgeprune.pruning.lowrank import dense_layers, factors, joined, plan_splits, principal, split
from edgeprune.pruning.plan import PlannedSplit, PruningPlan
from tests.nets import captured, randomized, run

ROW, IMAGE, TOKENS = (12,), (3, 8, 8), (6, 16)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 4))


class Pointwise(nn.Module):
    """1x1 convolutions with a stride, with padding and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1, stride=2, padding=1)
        self.norm, self.narrow = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.wide(self.stem(x).relu())).relu()
        return self.head(self.narrow(y).relu().mean((2, 3)))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
    return nn.Sequential(layer, nn.Linear(16, 4))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "mlp": (mlp, ROW, {"0.weight", "2.weight", "4.weight"}),
    "pointwise": (Pointwise, IMAGE, {"wide.weight", "narrow.weight", "head.weight"}),
    "transformer": (
        transformer,
        TOKENS,
        {"1.weight"}
        | {f"0.{part}" for part in ("self_attn.in_proj_weight", "linear1.weight", "linear2.weight")}
        | {"0.self_attn.out_proj.weight"},
    ),
    "one layer": (lambda: nn.Linear(12, 16), ROW, {"weight"}),
}


def made(name: str) -> tuple[Program, tuple[int, ...]]:
    build, shape, _ = CASES[name]
    torch.manual_seed(0)
    return captured(randomized(build()).double(), shape), shape


def halved(program: Program) -> tuple[PlannedSplit, ...]:
    return tuple(PlannedSplit(layer.weight, layer.worth // 2) for layer in dense_layers(program) if layer.worth >= 4)


@pytest.mark.parametrize("name", CASES)
def test_a_split_network_is_the_one_with_the_products_of_its_layers(name: str) -> None:
    program, shape = made(name)
    assert {layer.weight for layer in dense_layers(program)} == CASES[name][2]
    splits = halved(program)
    plan = plan_splits(program, splits)
    slim = edgeprune.cut(program, plan)
    assert set(program.state_dict) - set(slim.state_dict) == {one.weight for one in splits}
    x = torch.randn(5, *shape, dtype=torch.float64)
    assert edgeprune.prove(program, slim, plan, x) < 1e-12
    got, whole = (run(one.module(), (x,))[0] for one in (slim, joined(slim, splits)))
    assert torch.allclose(got, whole, atol=1e-11) and not torch.allclose(got, run(program.module(), (x,))[0])
    assert edgeprune.prove(program, slim, plan) < 1e-12  # at another batch, on drawn inputs


@pytest.mark.parametrize("name", CASES)
def test_at_full_rank_nothing_is_lost(name: str) -> None:
    program, shape = made(name)
    full = tuple(PlannedSplit(layer.weight, min(layer.n_out, layer.n_in)) for layer in dense_layers(program))
    x = torch.randn(5, *shape, dtype=torch.float64)
    assert torch.allclose(run(split(program, full).module(), (x,))[0], run(program.module(), (x,))[0], atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "pointwise", "transformer"])
def test_channels_go_before_and_after_a_split_and_a_plan_replays(name: str) -> None:
    program, shape = made(name)
    first = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.8, align=1)
    narrow = edgeprune.cut(program, first)
    halves = plan_splits(narrow, tuple(replace(one, rank=max(2, one.rank)) for one in halved(narrow)))
    shallow = edgeprune.cut(narrow, halves)
    last = edgeprune.plan(shallow, edgeprune.analyze(shallow), keep_macs=0.7, align=1)
    slim = edgeprune.cut(shallow, last)
    x = torch.randn(4, *shape, dtype=torch.float64)
    assert edgeprune.prove(shallow, slim, last, x) < 1e-9
    plan = PruningPlan.from_json(compose(compose(first, halves), last).to_json())
    assert {one.weight for one in plan.splits} == {one.weight for one in halves.splits}
    is_cut = sum(one.rank for one in plan.splits) < sum(one.rank for one in halves.splits)
    assert is_cut == (name != "mlp")  # ranks are channels as others are
    assert {group.name for group in plan.groups} <= {group.name for group in first.groups}
    assert set(plan.tensors) <= set(program.state_dict)
    replayed = edgeprune.cut(program, plan)
    shapes = [{name: tuple(t.shape) for name, t in one.state_dict.items()} for one in (replayed, slim)]
    assert shapes[0] == shapes[1]
    assert edgeprune.prove(program, replayed, plan, x) < 1e-9


def test_a_block_that_goes_takes_its_split_layers_along() -> None:
    program, shape = made("transformer")
    halves = plan_splits(program, halved(program))
    slim = edgeprune.cut(program, halves)
    block = next(one for one in residual_blocks(slim) if "0.linear1.up.weight" in one.tensors)
    plan = compose(halves, plan_blocks(slim, (block,)))
    assert "0.linear1.weight" in plan.blocks[0].tensors
    assert {one.weight for one in halves.splits} - {one.weight for one in plan.splits} == {
        "0.linear1.weight",
        "0.linear2.weight",
    }
    replayed = edgeprune.cut(program, PruningPlan.from_json(plan.to_json()))
    assert edgeprune.prove(program, replayed, plan, torch.randn(4, *shape, dtype=torch.float64)) < 1e-9


def test_the_factors_are_nearest_on_the_inputs_that_there_are() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(10, 6, dtype=torch.float64), torch.randn(200, 6, dtype=torch.float64)
    x[:, 3:] *= 0.01  # what the last three weigh hardly matters
    moments = x.T @ x / len(x)
    root = torch.linalg.cholesky(moments)
    aware = factors(weight, 3, principal(weight @ root))
    plain = factors(weight, 3)
    errors = [(x @ (up @ down - weight).T).square().mean().item() for down, up in (aware, plain)]
    least = torch.linalg.svdvals(weight @ root)[3:].square().sum().item() / 10
    assert errors[0] == pytest.approx(least, rel=1e-6) and errors[1] > 100 * errors[0]
    assert torch.allclose(plain[1] @ plain[0], principal(weight)[:, :3] @ principal(weight)[:, :3].T @ weight)


class Shared(nn.Module):
    """A layer that is called twice, one whose weight is computed, and one that is tied to another."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.scaled, self.one, self.other = (nn.Linear(12, 12) for _ in range(4))
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x = nn.functional.linear(x, self.scaled.weight * 2, self.scaled.bias)
        return self.other(self.one(x).relu())


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.spread = nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.spread(self.grouped(x))


@pytest.mark.parametrize(("module", "shape"), [(Shared(), ROW), (Grouped(), (4, 8, 8))])
def test_what_is_no_dense_layer_of_its_own_is_left_alone(module: nn.Module, shape: tuple[int, ...]) -> None:
    program = captured(module.double(), shape)
    assert dense_layers(program) == ()
    name = next(iter(program.state_dict))
    with pytest.raises(PlanError, match=f"splits '{name}': expected a dense layer's own weight such as none"):
        split(program, (PlannedSplit(name, 2),))


def test_a_rank_that_a_weight_cannot_have_is_refused() -> None:
    program, _ = made("mlp")
    with pytest.raises(PlanError, match=r"splits '0.weight' at rank 13: expected one that fits shape \(32, 12\)"):
        edgeprune.cut(program, plan_splits(program, (PlannedSplit("0.weight", 13),)))


def test_another_split_than_the_plan_says_is_no_proof() -> None:
    program, _ = made("mlp")
    plan = plan_splits(program, halved(program))
    slim = edgeprune.cut(program, plan)
    with pytest.raises(PlanError, match="expected '0.weight' in two layers, '0.down.weight' and '0.up.weight'"):
        edgeprune.prove(program, program, plan)
    broken = slim.with_tensors({"2.bias": nn.Parameter(slim.state_dict["2.bias"] + 1)})
    with pytest.raises(ProofError, match="the slim network is not the masked dense network"):
        edgeprune.prove(program, broken, plan)


def test_a_plan_with_splits_has_a_format_that_earlier_readers_refuse() -> None:
    program, _ = made("mlp")
    plan = plan_splits(program, (PlannedSplit("0.weight", 4),))
    document = json.loads(plan.to_json())
    assert document["format"] == "edgeprune-plan/2" and document["splits"] == [{"weight": "0.weight", "rank": 4}]
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert json.loads(replace(plan, splits=()).to_json())["format"] == "edgeprune-plan/1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "edgeprune-plan/1"}, "splits: expected them in 'edgeprune-plan/2' alone, got 'edgeprune-plan/1'"),
        ({"splits": {}}, "splits: expected a list, got dict"),
        ({"splits": [{"weight": "0.weight"}]}, "splits: expected a weight's name and a rank from 1"),
        ({"splits": [{"weight": "0.weight", "rank": 0}]}, "splits: expected a weight's name and a rank from 1"),
        ({"splits": [{"weight": "0.weight", "rank": True}]}, "splits: expected a weight's name and a rank from 1"),
        ({"splits": [{"weight": "0.weight", "rank": 2}] * 2}, "splits: expected every weight once"),
    ],
)
def test_a_bad_document_is_refused(change: dict[str, Any], message: str) -> None:
    program, _ = made("mlp")
    document = json.loads(plan_splits(program, (PlannedSplit("0.weight", 4),)).to_json())
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(json.dumps({**document, **change}))


def test_a_class_runs_its_layers_whole_and_says_so() -> None:
    torch.manual_seed(0)
    model = mlp().eval()
    program = edgeprune.capture(model, torch.randn(2, *ROW))
    slim = split(program, (PlannedSplit("2.weight", 4),))
    with pytest.raises(ApplyError, match="layer '2' was split in two, which the class runs whole"):
        slim.apply_to(model)
