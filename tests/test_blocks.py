"""Whole residual blocks: which there are, that the cut is proved, what a plan says of them, and which of them go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.errors import ApplyError, BudgetError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.progress import Silent
from edgeprune.pruning.blocks import gated, plan_blocks, residual_blocks, without_blocks
from edgeprune.pruning.compose import compose
from edgeprune.pruning.plan import PlannedBlock, PruningPlan
from edgeprune.search.candidate import Candidate, Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.structure import Structure
from tests.fakes import FakeCutter, Net, candidate
from tests.nets import captured, randomized, run

IMAGE, ROW, TOKENS = (3, 8, 8), (12,), (6, 16)


class Basic(nn.Module):
    """As in a ResNet, with everything in place that can be."""

    def __init__(self, c: int = 8, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(c, c, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


def resnet() -> nn.Module:
    blocks = (Basic(), Basic(), Basic(stride=2), Basic())
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Preactivated(nn.Module):
    """An activation in place on what the identity takes: the identity is what it left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(torch.nn.functional.hardswish(x, inplace=True))
        return self.b(torch.nn.functional.hardswish(x + y, inplace=True) + x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def linear(n: int = 10) -> nn.Module:
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))


def rows(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 10), *parts, nn.Linear(10, 4))


def nested() -> nn.Module:
    return rows(Residual(nn.Sequential(Residual(linear()), linear())))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 4))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "resnet": (resnet, IMAGE, ["1", "2", "4"]),
    "preactivated": (Preactivated, ROW, ["a"]),
    "nested": (nested, ROW, ["1.inner.0.inner", "1.inner"]),
    "transformer": (
        transformer,
        TOKENS,
        [f"0.layers.{n} ({part})" for n in (0, 1) for part in ("norm1, self_attn", "linear1, linear2, norm2")],
    ),
}


def made(name: str) -> tuple[Program, tuple[PlannedBlock, ...], tuple[int, ...]]:
    build, shape, _ = CASES[name]
    torch.manual_seed(0)
    program = captured(randomized(build()).double(), shape)
    return program, residual_blocks(program), shape


@pytest.mark.parametrize("name", CASES)
def test_the_blocks_of_a_network_are_found_by_their_sums(name: str) -> None:
    program, blocks, _ = made(name)
    assert sorted(sorted(block.name) for block in blocks) == sorted(sorted(wanted) for wanted in CASES[name][2])
    assert all(set(block.tensors) <= set(program.state_dict) for block in blocks)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_a_network_without_a_block_is_the_dense_one_with_its_gate_closed(name: str) -> None:
    program, blocks, shape = made(name)
    x = torch.randn(3, *shape, dtype=torch.float64)
    dense = run(program.module(), (x,))[0]
    for block in blocks:
        plan = plan_blocks(program, (block,))
        slim = edgeprune.cut(program, plan)
        assert edgeprune.prove(program, slim, plan, x) < 1e-12
        assert set(program.state_dict) - set(slim.state_dict) == set(block.tensors)
        got = run(slim.module(), (x,))[0]
        assert torch.equal(got, run(gated(program, (block,)), (x,))[0]) and not torch.allclose(got, dense)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", CASES)
def test_blocks_and_channels_go_together_and_a_plan_replays(name: str) -> None:
    program, blocks, shape = made(name)
    first = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.8, align=1)
    narrow = edgeprune.cut(program, first)
    taken = plan_blocks(narrow, residual_blocks(narrow)[:1])
    shallow = edgeprune.cut(narrow, taken)
    last = edgeprune.plan(shallow, edgeprune.analyze(shallow), keep_macs=0.8, align=1)
    slim = edgeprune.cut(shallow, last)
    plan = PruningPlan.from_json(compose(compose(first, taken), last).to_json())
    assert [block.name for block in plan.blocks] == [blocks[0].name] and plan.exact == (first.exact and last.exact)
    replayed = edgeprune.cut(program, plan)
    assert replayed.state_dict.keys() == slim.state_dict.keys()
    x = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.equal(run(replayed.module(), (x,))[0], run(slim.module(), (x,))[0])
    assert edgeprune.prove(program, replayed, plan, x) < 1e-9


def test_one_within_another_goes_first_and_the_other_still_can() -> None:
    program, (inner, _), _ = made("nested")
    shallow = without_blocks(program, (inner,))
    [outer] = residual_blocks(shallow)
    slim = without_blocks(program, (inner, outer))
    assert residual_blocks(slim) == () and len(slim.state_dict) == 4


def test_another_network_than_the_plan_says_is_no_proof() -> None:
    program, blocks, _ = made("resnet")
    wrong = without_blocks(program, blocks[1:2])
    with pytest.raises(ProofError, match="the slim network is not the masked dense network"):
        edgeprune.prove(program, wrong, plan_blocks(program, blocks[:1]))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(12, 10), linear(), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.f(x)
        return self.head(x + self.f(x))


class Scaled(nn.Module):
    """No identity: what is added is another multiple, or has been made of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.f, self.head = nn.Linear(12, 10), nn.Linear(12, 10), linear(), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x), self.other(x)
        return self.head(torch.add(a, self.f(a), alpha=2) + b)


class Alone(nn.Module):
    """A block that alone reads an input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Linear(12, 10), nn.Linear(22, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.f(torch.cat([x, y], 1)))


NONE: dict[str, tuple[nn.Module, tuple[tuple[int, ...], ...]]] = {
    "whole network": (Residual(linear(12)), (ROW,)),
    "applied twice": (Twice(), (ROW,)),
    "no identity": (Scaled(), (ROW,)),
    "alone with an input": (Alone(), (ROW, ROW)),
    "broadcast": (rows(Residual(nn.Linear(10, 1))), (ROW,)),
    "no parameters": (rows(Residual(nn.Tanh())), (ROW,)),
    "none": (nn.Linear(12, 4), (ROW,)),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_block_is_left_alone(name: str) -> None:
    module, shapes = NONE[name]
    assert residual_blocks(captured(module.double(), *shapes)) == ()


# -- what a plan says


def test_a_plan_with_blocks_has_a_format_that_earlier_readers_refuse() -> None:
    program, blocks, _ = made("resnet")
    plan = plan_blocks(program, blocks[:1])
    document = json.loads(plan.to_json())
    assert document["format"] == "edgeprune-plan/2"
    assert document["blocks"] == [{"name": blocks[0].name, "tensors": list(blocks[0].tensors)}]
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert json.loads(replace(plan, blocks=()).to_json())["format"] == "edgeprune-plan/1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": "edgeprune-plan/1"},
            "blocks: expected them in 'edgeprune-plan/2' alone, got 'edgeprune-plan/1' with",
        ),
        ({"blocks": []}, "blocks: expected them in 'edgeprune-plan/2' alone, got 'edgeprune-plan/2' without any"),
        ({"blocks": {}}, "blocks: expected a list, got dict"),
        ({"blocks": [{"name": "a"}]}, "blocks: expected a name and the names of tensors"),
        ({"blocks": [{"name": "a", "tensors": [1]}]}, "blocks: expected a name and the names of tensors"),
        ({"blocks": [{"name": 1, "tensors": ["a"]}]}, "blocks: expected a name and the names of tensors"),
    ],
)
def test_a_bad_document_is_refused(change: dict[str, Any], message: str) -> None:
    program, blocks, _ = made("nested")
    document = json.loads(plan_blocks(program, blocks[:1]).to_json())
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(json.dumps({**document, **change}))


def test_a_block_that_is_not_there_is_refused() -> None:
    program, blocks, _ = made("resnet")
    unknown = PlannedBlock("9", ("9.weight",))
    with pytest.raises(
        PlanError, match=r"block '9' \(9.weight, ...\), which the model does not have: expected one of 1, 2"
    ):
        edgeprune.cut(program, plan_blocks(program, (unknown,)))
    with pytest.raises(PlanError, match="block '1'"):
        edgeprune.cut(program, plan_blocks(program, (blocks[0], blocks[0])))


def test_a_class_runs_its_blocks_and_says_so() -> None:
    torch.manual_seed(0)
    model = resnet().eval()
    program = edgeprune.capture(model, torch.randn(2, *IMAGE))
    slim = without_blocks(program, residual_blocks(program)[:1])
    with pytest.raises(
        ApplyError, match=r"the program has no '1.conv1.weight', and a class runs blocks that were taken out"
    ):
        slim.apply_to(model)


# -- which of them go


@dataclass
class BlockCutter(FakeCutter):
    """Blocks a, b and c save so much each; a cut with blocks is at the same width, and is known by their names."""

    blocks: dict[str, float] = field(default_factory=lambda: {"a": 0.1, "b": 0.2, "c": 0.1})
    fails: bool = False

    def __init__(self, fails: bool = False) -> None:
        FakeCutter.__init__(self, Manner(align=4))
        self.blocks, self.fails = {"a": 0.1, "b": 0.2, "c": 0.1}, fails

    def free_blocks(self, _: Candidate) -> tuple[PlannedBlock, ...]:
        return tuple(PlannedBlock(name, (name,)) for name in self.blocks)

    def with_pieces(self, best: Candidate, pieces: Any) -> Candidate:
        return replace(best, macs=int(best.macs * (1 - sum(self.blocks[block.name] for block in pieces))))

    def pruned(self, best: Candidate, shares: Shares, n_features: int | None = None, pieces: Any = ()) -> Candidate:
        if self.fails and not pieces:
            raise BudgetError("groups at their least width")
        found = candidate(16, 12)
        cast(Any, found.program).taken = "".join(block.name for block in pieces)
        return found

    def trial(self, best: Candidate, shares: Shares, pieces: Any = ()) -> Candidate:  # type: ignore[override]
        return self.pruned(best, shares, pieces=pieces)


@dataclass
class Losses:
    """The loss of a network by the blocks that it is without; of single gates by their order."""

    taken: dict[str, float]
    gates: list[float]

    def probed(self, module: nn.Module, settled: bool) -> float:
        if getattr(module, "is_gate", False):
            return self.gates.pop(0)
        return self.taken[getattr(module, "taken", "dense")]


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> Net:
        net = Net()
        net.is_gate = True  # type: ignore[assignment]
        return net

    own = Net.own_module
    monkeypatch.setattr("edgeprune.search.structure.gated", closed)
    monkeypatch.setattr(Net, "own_module", lambda self: _tagged(own(self), self))


def _tagged(net: Net, origin: Net) -> Net:
    if hasattr(origin, "taken"):
        net.taken = origin.taken
    return net


@pytest.mark.parametrize(
    ("losses", "taken", "said"),
    [
        ({"": 0.5, "b": 0.6}, "", []),
        ({"": 0.5, "b": 0.4, "bc": 0.45}, "b", ["b goes whole: loss 0.400, 0.500 by channels alone"]),
        ({"": 0.5, "b": 0.4, "bc": 0.3, "bca": 0.3}, "bc", ["b, c go whole: loss 0.300, 0.500 by channels alone"]),
    ],
)
@pytest.mark.usefixtures("gates")
def test_blocks_go_for_as_long_as_less_is_lost(losses: dict[str, float], taken: str, said: list[str]) -> None:
    told = Told()
    prober = Losses({"dense": 0.1, **losses}, [0.5, 0.2, 0.18])  # b is cheapest for what it saves, then c
    found = Structure(cast(Cutter, BlockCutter()), prober, told, depth=True).pruned(candidate(32, 12), Shares(macs=0.5))
    assert cast(Any, found.program).taken == taken and told.lines == said


@pytest.mark.usefixtures("gates")
def test_blocks_reach_what_channels_cannot() -> None:
    told = Told()
    prober = Losses({"dense": 0.1, "b": 0.4, "bc": 0.5}, [0.5, 0.2, 0.18])
    found = Structure(cast(Cutter, BlockCutter(fails=True)), prober, told, depth=True).pruned(
        candidate(32, 12), Shares(macs=0.5)
    )
    assert cast(Any, found.program).taken == "b"
    assert told.lines == ["b goes whole: loss 0.400, channels alone cannot do it"]
    stuck = BlockCutter(fails=True)
    stuck.blocks = {}
    with pytest.raises(BudgetError, match="groups at their least width"):
        Structure(cast(Cutter, stuck), Losses({"dense": 0.1}, []), told, depth=True).pruned(
            candidate(32, 12), Shares(macs=0.5)
        )


@pytest.mark.usefixtures("gates")
def test_a_trial_takes_as_few_blocks_as_reach_what_channels_cannot() -> None:
    prober = Losses({"dense": 0.1}, [0.5, 0.2, 0.18])
    cuts = Structure(cast(Cutter, BlockCutter(fails=True)), prober, Told(), depth=True)
    assert cast(Any, cuts.trial(candidate(32, 12), Shares(macs=0.5)).program).taken == "b"
    enough = Structure(cast(Cutter, BlockCutter()), prober, Told(), depth=True)
    assert cast(Any, enough.trial(candidate(32, 12), Shares(macs=0.5)).program).taken == ""
    stuck = BlockCutter(fails=True)
    stuck.blocks = {}
    with pytest.raises(BudgetError, match="groups at their least width"):
        Structure(cast(Cutter, stuck), prober, Told(), depth=True).trial(candidate(32, 12), Shares(macs=0.5))


def test_blocks_with_a_layer_that_is_held_stay() -> None:
    program, blocks, _ = made("resnet")
    assert Cutter(program, Manner(), None).free_blocks(Cutter(program, Manner(), None).dense) == blocks
    held = Cutter(program, Manner(leave=("2.*",), layer_ratios={"4.conv1": 0.5}), None)
    assert [block.name for block in held.free_blocks(held.dense)] == ["1"]


NETWORK = """
from torch import nn

class Residual(nn.Module):
    def __init__(self, n, scale):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(n, n), nn.Linear(n, n), scale

    def forward(self, x):
        return x + self.scale * self.b(self.a(x).relu())

def net():
    blocks = [Residual(32, scale) for scale in (1.0, 0.01, 1.0)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.Linear(32, 10))
"""


def test_the_command_takes_blocks_out_and_all_files_agree(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    model, out = (str(tmp_path / name) for name in ("model.pt", "run"))
    arch = ["--arch", f"{tmp_path / 'nets.py'}:net", "--data", "digits"]
    assert main(["train", *arch, "--epochs", "4", "--threads", "1", "--out", model]) == 0
    quick = ["--finetune-epochs", "0", "--threads", "1", "--input-features", "off"]
    assert main(["compress", model, *arch, *quick, "--depth", "--keep-macs", "0.6", "--out", out]) == 0
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert told["blocks"] == [block["name"] for block in plan["blocks"]] == ["3"]  # the one that hardly adds anything
    assert told["slim"]["macs"] <= 0.6 * told["dense"]["macs"] and told["proof_error"] < 1e-5
    assert told["accuracy"]["slim"] > told["accuracy"]["dense"] - 0.15
    assert main(["export", "--onnx", f"{out}/slim.pt2", "--out", out]) == 0
    session = onnxruntime.InferenceSession(f"{out}/slim.onnx", providers=["CPUExecutionProvider"])
    slim = edgeprune.load_model(f"{out}/slim.pt2").program
    x = torch.rand(5, 1, 8, 8)
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(got - run(slim.module(), (x,))[0].numpy()).max() < 1e-4
