"""Distillation by features: where both networks are compared, what that comes to, and that a training learns it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.commands.budgets import decide
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.pruning.compose import compose
from edgeprune.pruning.lowrank import plan_splits
from edgeprune.pruning.plan import PlannedSplit, PruningPlan
from edgeprune.requests import CompressRequest
from edgeprune.search.tapping import taps_of
from edgeprune.training.features import Features, Tap
from tests.nets import captured, randomized


class Stages(nn.Module):
    """Two stages, a pool between them, and a head behind a mean; activations are in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.down, self.deep = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(12, 12, 1)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.norm(self.one(x)))
        x = self.relu(self.deep(self.relu(self.down(x))))
        return self.head(self.relu(self.hidden(x.mean((2, 3)))))


def cut_network() -> tuple[Program, Program, PruningPlan]:
    torch.manual_seed(0)
    program = captured(randomized(Stages()), (3, 8, 8))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.6, align=1)
    return program, edgeprune.cut(program, plan), plan


def layers_of(taps: list[Tap], module: fx.GraphModule) -> list[str]:
    """The layers that read what is tapped."""
    readers = [next(user for user in tap.slim.users if len(user.all_input_nodes) > 1) for tap in taps]
    return [str(reader.all_input_nodes[1].target) for reader in readers]


def test_stages_end_where_sizes_change_and_the_head_reads_the_last() -> None:
    program, slim, plan = cut_network()
    module, teacher = slim.own_module(), program.frozen_module()
    taps = taps_of(module, teacher, plan)
    assert layers_of(taps, module) == ["down.weight", "hidden.weight", "head.weight"]
    for tap, name in zip(taps, ("down.weight", "hidden.weight", "head.weight"), strict=True):
        assert tap.kept == plan.tensors[name][1] and tap.dim == (1 if name == "down.weight" else -1)


def test_the_distance_is_the_error_of_the_kept_channels_by_their_variance() -> None:
    program, slim, plan = cut_network()
    module, teacher = slim.own_module(), program.frozen_module()
    features = Features(module, teacher, taps_of(module, teacher, plan)[-1:])
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    codes = module.code, teacher.code
    with features.watched():
        got = module(x)
        teacher(x)
        distance = features.distance()
    assert (module.code, teacher.code) == codes and torch.equal(got, module(x))

    def read_by_head(network: Any) -> Tensor:
        seen: list[Tensor] = []
        interpreter = fx.Interpreter(network)
        last = [n for n in network.graph.nodes if "linear" in str(n.target)][-1]
        run_node = interpreter.run_node

        def watched(n: fx.Node) -> Any:
            if n is last:
                seen.append(interpreter.env[n.args[0]].clone())
            return run_node(n)

        interpreter.run_node = watched  # type: ignore[method-assign]
        interpreter.run(x)
        return seen[0]

    wanted = read_by_head(teacher)[:, list(plan.tensors["head.weight"][1])]
    error = (read_by_head(module) - wanted).square().mean() / wanted.var(correction=0)
    assert distance.item() == pytest.approx(error.item(), rel=1e-5) and distance.requires_grad


def test_a_network_that_was_not_cut_is_at_no_distance() -> None:
    program, _, _ = cut_network()
    module, teacher = program.own_module(), program.frozen_module()
    taps = taps_of(module, teacher, PruningPlan("", {}))
    assert all(tap.kept is None for tap in taps)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    features = Features(module, teacher, taps)
    with features.watched():
        for network in (module, teacher):
            network(x)
        assert features.distance().item() == 0


def test_layers_that_were_split_read_the_same_and_what_is_between_is_not_compared() -> None:
    program, slim, plan = cut_network()
    halves = plan_splits(slim, (PlannedSplit("hidden.weight", 1), PlannedSplit("head.weight", 1)))
    split = edgeprune.cut(slim, halves)
    module, teacher = split.own_module(), program.frozen_module()
    taps = taps_of(module, teacher, compose(plan, halves))
    assert layers_of(taps, module) == ["down.weight", "hidden.down.weight", "head.down.weight"]
    features = Features(module, teacher, taps)
    with features.watched():
        module(x := torch.randn(4, 3, 8, 8, dtype=torch.float64))
        teacher(x)
        assert features.distance().isfinite()


def test_a_network_of_one_layer_has_nothing_in_between() -> None:
    program = captured(nn.Linear(12, 4), (12,))
    assert taps_of(program.own_module(), program.frozen_module(), PruningPlan("", {})) == []


@pytest.mark.parametrize(
    ("given", "has_data", "message"),
    [
        ({}, False, "--distill features: expected data to finetune on, got none"),
        (
            {"finetune": "a.py:f"},
            True,
            "by the data, got --finetune a.py:f, which has its own loss",
        ),
        ({"finetune_epochs": 0}, True, "expected epochs to finetune, got --finetune-epochs 0"),
    ],
)
def test_where_nothing_is_finetuned_it_is_refused(given: dict[str, Any], has_data: bool, message: str) -> None:
    request = CompressRequest("model.pt", distill_features=True, keep_macs=0.5, **given)
    with pytest.raises(InputError, match=message):
        decide(request, None, has_data=has_data)


NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.mark.slow
def test_the_command_learns_by_them_and_comes_to_the_same_again(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    model = str(tmp_path / "model.pt")
    arch = ["--arch", f"{tmp_path / 'nets.py'}:net", "--data", "digits"]
    assert main(["train", *arch, "--epochs", "3", "--threads", "1", "--out", model]) == 0
    asked = ["--finetune-epochs", "1", "--threads", "1", "--input-features", "off", "--prune-schedule", "one-shot"]
    made = {}
    for name, mode in (("plain", "outputs"), ("one", "features"), ("two", "features")):
        out = tmp_path / name
        run = ["compress", model, *arch, *asked, "--keep-macs", "0.4", "--distill", mode, "--out", str(out)]
        assert main(run) == 0
        made[name] = edgeprune.load_model(out / "slim.pt2").program.state_dict
        told = json.loads((out / "run.json").read_text())
        assert told["asked"].get("distill_features") == (True if mode == "features" else None)
        assert told["accuracy"]["slim"] > told["accuracy"]["dense"] - 0.1
    assert all(torch.equal(made["one"][name], tensor) for name, tensor in made["two"].items())
    assert not all(torch.equal(made["one"][name], tensor) for name, tensor in made["plain"].items())
