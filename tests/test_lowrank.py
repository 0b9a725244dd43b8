"""Layers split in two: which may be, that the split is proved, what a plan says of it, and which of them go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.commands.budgets import decide
from edgeprune.errors import ApplyError, InputError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.progress import Silent
from edgeprune.pruning.blocks import plan_blocks, residual_blocks
from edgeprune.pruning.compose import compose
from edgeprune.pruning.lowrank import dense_layers, factors, joined, plan_splits, principal, split
from edgeprune.pruning.plan import PlannedSplit, PruningPlan
from edgeprune.reconstruction.directions import directions
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.structure import Structure
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


# -- which of them go


def test_directions_are_those_of_what_a_layer_gives_on_the_inputs() -> None:
    program, shape = made("mlp")
    x = torch.randn(64, *shape, dtype=torch.float64)
    module = program.module()
    names = ["0.weight", "4.weight"]  # by the moments of what it reads, and of what it gives, as that is narrower
    found = directions(program, names, [x])
    assert found.keys() == set(names)
    weights = dict(module.named_parameters())
    first = x @ weights["0.weight"].T
    second = (first + weights["0.bias"]).relu() @ weights["2.weight"].T + weights["2.bias"]
    given = {"0.weight": first, "4.weight": second.tanh() @ weights["4.weight"].T}
    for name, y in given.items():
        wanted = torch.linalg.svd(y, full_matrices=False).Vh.T[:, :4]
        like = (wanted * found[name][:, :4]).sum(0).abs()
        assert torch.allclose(like, torch.ones_like(like), atol=1e-4)


def dense_cutter(**manner: Any) -> Cutter:
    return Cutter(made("mlp")[0], Manner(align=2, **manner), None)


def test_a_layer_that_is_held_or_was_made_by_a_split_stays() -> None:
    cutter = dense_cutter()
    assert [layer.weight for layer in cutter.free_layers(cutter.dense)] == ["0.weight", "2.weight", "4.weight"]
    halved = cutter.with_pieces(cutter.dense, (PlannedSplit("2.weight", 4),))
    assert [layer.weight for layer in cutter.free_layers(halved)] == ["0.weight", "4.weight"]
    held = dense_cutter(leave=("0",), layer_ratios={"4*": 0.5})
    assert [layer.weight for layer in held.free_layers(held.dense)] == ["2.weight"]


class Loss:
    """The loss of a network by the ranks that its layers have."""

    def __init__(self, of_split: Callable[[frozenset[tuple[str, int]]], float]) -> None:
        self.of_split = of_split

    def probed(self, module: nn.Module, settled: bool) -> float:
        named = dict(module.named_parameters())
        ranks = {(name.partition(".")[0], len(t)) for name, t in named.items() if name.endswith("down.weight")}
        return self.of_split(frozenset(ranks))


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_layers_are_split_for_as_long_as_less_is_lost() -> None:
    told, cutter = Told(), dense_cutter()

    def loss(ranks: frozenset[tuple[str, int]]) -> float:
        by_layer = {"0": 0.01, "2": -0.3, "4": 0.5}  # of what loses nothing, that goes first which saves most
        return 1 + sum(by_layer[layer] for layer, _ in ranks)

    found = Structure(cutter, Loss(loss), told, lowrank=True).pruned(cutter.dense, Shares(macs=0.5))
    assert found.plan is not None
    assert [one.weight for one in found.plan.splits] == ["2.weight"] and found.plan.splits[0].rank == 2
    assert found.macs <= 0.5 * cutter.dense.macs and found.proof_error < 1e-9
    assert told.lines == ["2 at rank 2 is split: loss 0.700, 1.000 by channels alone"]


def test_a_layer_that_is_split_beside_a_norm_that_loses_channels_is_proved() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3))
    cutter = Cutter(captured(net, (8,)), Manner(align=1), None)
    loss = Loss(lambda ranks: 1 + sum(-0.1 if layer == "2" else 0.5 for layer, _ in ranks))
    found = Structure(cutter, loss, Told(), lowrank=True).pruned(cutter.dense, Shares(macs=0.2))
    assert found.plan is not None and [one.weight for one in found.plan.splits] == ["2.weight"]
    assert found.proof_error < 1e-9
    normed = [group for group in found.plan.groups if group.name == "0"]
    assert [group.exact for group in normed] == [False] and normed[0].after < normed[0].before == 32
    assert not found.plan.exact and edgeprune.prove(cutter.dense.program, found.program, found.plan) < 1e-9


def test_where_no_layer_pays_it_is_said_once() -> None:
    program = captured(nn.Sequential(nn.Linear(12, 2), nn.ReLU(), nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 2)), ROW)
    told, cutter = Told(), Cutter(program, Manner(align=1), None)
    cuts = Structure(cutter, Loss(lambda ranks: 1.0), told, lowrank=True)
    for _ in range(2):
        found = cuts.pruned(cutter.dense, Shares(macs=0.8))
        assert found.plan is not None and found.plan.splits == ()
    assert told.lines[-1:] == ["--lowrank: no layer is split: there is none whose two halves would cost less"]
    assert len(told.lines) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan": "plan.json"}, "--lowrank: expected a choice of layers, got --plan plan.json"),
        ({"appliable": True}, "--lowrank: expected no --keep-equal-chunks, as a class of yours runs its layers whole"),
        ({}, "--lowrank: expected data to judge layers on, got none; give --data"),
    ],
)
def test_what_does_not_go_with_it_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("model.pt", lowrank=True, **given), None, has_data=False)


NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
"""


@pytest.mark.slow
def test_the_command_splits_layers_and_all_files_agree(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    model, out, again = (str(tmp_path / name) for name in ("model.pt", "run", "again"))
    arch = ["--arch", f"{tmp_path / 'nets.py'}:net", "--data", "digits"]
    assert main(["train", *arch, "--epochs", "4", "--threads", "1", "--out", model]) == 0
    quick = ["--finetune-epochs", "0", "--threads", "1", "--input-features", "off"]
    budget = ["--lowrank", "--keep-macs", "0.4", "--prune-schedule", "one-shot"]
    assert main(["compress", model, *arch, *quick, *budget, "--out", out]) == 0
    told, plan = (json.loads((tmp_path / "run" / name).read_text()) for name in ("run.json", "plan.json"))
    assert told["splits"] and {one["name"] for one in told["splits"]} <= {"1", "3", "5"}
    assert [(f"{one['name']}.weight", one["rank"]) for one in told["splits"]] == [
        (one["weight"], one["rank"]) for one in plan["splits"]
    ]
    assert told["slim"]["macs"] <= 0.4 * told["dense"]["macs"] and told["proof_error"] < 1e-5
    assert told["accuracy"]["slim"] > told["accuracy"]["dense"] - 0.05
    assert "in two at rank" in (tmp_path / "run" / "report.html").read_text()
    slim = edgeprune.load_model(f"{out}/slim.pt2").program
    assert f"{told['splits'][0]['name']}.down.weight" in slim.state_dict
    assert main(["export", "--onnx", f"{out}/slim.pt2", "--out", out]) == 0
    session = onnxruntime.InferenceSession(f"{out}/slim.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(5, 1, 8, 8)
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(got - run(slim.module(), (x,))[0].numpy()).max() < 1e-4
    assert main(["compress", model, *arch, *quick, "--plan", f"{out}/plan.json", "--out", again]) == 0
    replayed = json.loads((tmp_path / "again" / "run.json").read_text())
    assert replayed["splits"] == told["splits"] and replayed["slim"]["macs"] == told["slim"]["macs"]
    assert replayed["accuracy"]["slim"] > told["accuracy"]["dense"] - 0.05
