"""A training loop of one's own gets ever smaller networks, and what comes of it is proved, written and put back."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import edgeprune
from edgeprune.commands.export import export
from edgeprune.cost.activations import peak_activations
from edgeprune.cost.device import Device, Point
from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.macs import macs
from edgeprune.errors import BudgetError, InputError
from edgeprune.formats.load import load
from edgeprune.graph.apply import evaluated
from edgeprune.importance import score
from edgeprune.requests import ExportRequest
from edgeprune.runrecord import run_from_json
from tests.nets import run as outputs_of

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """Convolutions, batch norm and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.head = nn.Conv2d(width, 2 * width, 3, stride=2), nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


class Several(nn.Module):
    """Whole numbers, a mask and a table come in; a dict goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.table, self.mix = nn.Embedding(20, 16), nn.Linear(6, 16), nn.Linear(32, 32)
        self.kind, self.size = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, ids: Tensor, mask: Tensor, table: Tensor) -> dict[str, Tensor]:
        words = (self.words(ids) * mask[..., None]).sum(1)
        mixed = torch.relu(self.mix(torch.cat([words, torch.relu(self.table(table))], 1)))
        return {"kind": self.kind(mixed), "size": self.size(mixed)}


def several_inputs(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.ones(n, 5)
    mask[0, 3:] = 0
    return torch.randint(0, 20, (n, 5)), mask, torch.randn(n, 6)


def images(n: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def net(width: int = 16) -> Net:
    torch.manual_seed(0)
    return Net(width)


def pruner_of(model: nn.Module, **choices: Any) -> edgeprune.Pruner:
    return edgeprune.Pruner(model, images(2), **{"keep_macs": 0.4, "steps": 2, "align": 2, **choices})


def loss_of(module: nn.Module, seed: int) -> Tensor:
    x = images(8, seed)
    return nn.functional.cross_entropy(module(x), x[:, 0, 0, 0].gt(0).long())


def train(module: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = 3) -> None:
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=0.1)
    for seed in range(steps):
        optimizer.zero_grad()
        loss_of(module, seed).backward()
        optimizer.step()


def same_outputs(one: nn.Module, other: nn.Module, *args: Any) -> bool:
    with evaluated(one), evaluated(other):
        pairs = zip(outputs_of(one, args), outputs_of(other, args), strict=True)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


# -- the loop --


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("geometric", (0.4**0.5, 0.4)), ("linear", (0.7, 0.4)), ("cubic", (0.475, 0.4)), ((0.25, 1), (0.4**0.25, 0.4))],
)
def test_each_network_is_smaller_and_learns_on(schedule: Any, expected: tuple[float, ...]) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    pruner = pruner_of(model, schedule=schedule, align=1)
    dense, shares = macs(pruner.program), []
    assert pruner.plan is None
    for module in pruner:
        assert module.training
        train(module)
        shares.append(macs(pruner.program) / dense)
        assert same_outputs(module, pruner.program.module(), images())
    assert len(shares) == pruner.step == pruner.steps == 2
    assert all(share - 0.06 < got <= share for got, share in zip(shares, expected, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    pruner.apply_to(model)
    assert same_outputs(model, module, images())
    assert list(pruner) == []


def test_held_layers_come_down_as_the_costs_do() -> None:
    pruner = pruner_of(net(), keep_macs=0.7, steps=2, leave=["first"], layer_ratios={"sec*": 0.25})
    widths = []
    for _ in pruner:
        assert pruner.plan is not None
        widths.append({group.name: group.after for group in pruner.plan.groups})
    assert widths == [{"first": 16, "second": 16}, {"first": 16, "second": 8}]


def test_one_plan_leads_from_the_dense_network_to_the_result() -> None:
    model = net()
    pruner = pruner_of(model, steps=3)
    dense = pruner.program
    for module in pruner:
        train(module)
    assert pruner.plan is not None
    again = edgeprune.cut(dense, pruner.plan)
    assert {n: t.shape for n, t in again.state_dict.items()} == {
        n: t.shape for n, t in pruner.program.state_dict.items()
    }


def test_several_inputs_and_a_dict_of_outputs() -> None:
    torch.manual_seed(0)
    model = Several()
    pruner = edgeprune.Pruner(model, several_inputs(), keep_macs=0.5, steps=2, align=2)
    for module in pruner:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        result = module(*several_inputs())
        (result["kind"].square().mean() + result["size"].square().mean()).backward()
        optimizer.step()
    pruner.apply_to(model)
    assert model.mix.out_features < 32
    assert same_outputs(model, module, *several_inputs(9))


def test_input_features_go_step_by_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    pruner = edgeprune.Pruner(model, torch.randn(2, 24), input_features=6, keep_macs=0.3, steps=2, align=2)
    states = []
    for _ in pruner:
        plan = pruner.plan
        assert plan is not None
        states.append(pruner.state_dict())
    [features] = plan.inputs.values()
    assert len(features.keep) == 6
    resumed = edgeprune.Pruner(model, torch.randn(2, 24), input_features=6, keep_macs=0.3, steps=2, align=2)
    resumed.load_state_dict(states[0])
    assert len(list(resumed)) == 2
    assert resumed.plan == plan


def test_autocast_a_copy_in_a_wrapper_and_an_average_come_back() -> None:
    pruner = pruner_of(net())
    module = next(pruner)
    compiled = torch.compile(module, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_of(compiled, 0).backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert same_outputs(pruner.program.module(), module, images())
    average = AveragedModel(module)
    average.update_parameters(module)
    train(module)
    average.update_parameters(module)
    pruner.take(average)
    assert same_outputs(pruner.program.module(), average, images())
    assert not same_outputs(pruner.program.module(), module, images())


# -- scores that the loop feeds --


def test_what_is_observed_is_the_taylor_criterion() -> None:
    model = net()
    pruner = pruner_of(model, criterion="taylor", steps=1)
    pruner.module.eval()
    batches = [(images(8, seed), images(8, seed)[:, 0, 0, 0].gt(0).long()) for seed in range(3)]
    for x, y in batches:
        pruner.module.zero_grad()
        nn.functional.cross_entropy(pruner.module(x), y).backward()
        assert pruner.observe()
    program = edgeprune.capture(model, images(2))
    graph = edgeprune.analyze(program)
    expected = edgeprune.plan(program, graph, 0.4, "taylor", 2, batches=batches)
    assert [len(scores) for scores in score(program, graph, "taylor", batches=batches)] == [16, 32]
    next(pruner)
    assert pruner.plan == expected


def test_gradients_that_overflowed_do_not_count() -> None:
    pruner = pruner_of(net(), criterion="taylor")
    (loss_of(pruner.module, 0) * float("inf")).backward()
    assert not pruner.observe()
    with pytest.raises(InputError, match="criterion taylor: expected gradients that were observed since the last step"):
        next(pruner)
    pruner.module.zero_grad()
    loss_of(pruner.module, 0).backward()
    assert pruner.observe()
    train(next(pruner))
    with pytest.raises(InputError, match="observed since the last step"):
        next(pruner)


def test_observing_without_gradients_is_refused() -> None:
    with pytest.raises(InputError, match="observe: expected parameters with gradients, got none"):
        pruner_of(net(), criterion="taylor").observe()


# -- the optimizer goes on --


def test_an_optimizer_goes_on_with_its_state_cut() -> None:
    pruner = pruner_of(net())
    module = next(pruner)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    train(module, optimizer)
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in module.named_parameters()}
    width = len(module.get_parameter("first.weight"))
    following, plan = next(pruner), pruner.plan
    moved = pruner.migrate(optimizer)
    assert set(moved.carried) == set(before) and not moved.afresh and not moved.dropped
    assert plan is not None and len(following.get_parameter("first.weight")) < width
    own = {id(p) for p in following.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == own
    kept = optimizer.state[following.get_parameter("first.weight")]["exp_avg"]
    rows = {tuple(row.flatten().tolist()) for row in before["first.weight"]}
    assert {tuple(row.flatten().tolist()) for row in kept} < rows
    head = following.get_parameter("head.weight").detach().clone()
    train(following, optimizer)
    assert not torch.equal(head, following.get_parameter("head.weight"))


def test_an_optimizer_goes_on_where_an_average_was_taken_back() -> None:
    pruner = pruner_of(net())
    module = next(pruner)
    optimizer, average = torch.optim.Adam(module.parameters(), lr=1e-2), AveragedModel(module)
    train(module, optimizer)
    average.update_parameters(module)
    pruner.take(average)
    following = next(pruner)
    assert set(pruner.migrate(optimizer).carried) == {name for name, _ in following.named_parameters()}
    head = following.get_parameter("head.weight").detach().clone()
    train(following, optimizer)
    assert not torch.equal(head, following.get_parameter("head.weight"))


def test_state_of_another_shape_begins_afresh_and_other_networks_stay() -> None:
    pruner, other = pruner_of(net()), nn.Linear(3, 3)
    module = next(pruner)
    optimizer = torch.optim.Adafactor([{"params": module.parameters()}, {"params": other.parameters()}])
    train(module, optimizer, 1)
    following = next(pruner)
    moved = pruner.migrate(optimizer)
    assert "first.weight" in moved.afresh and "first.bias" in moved.carried
    assert optimizer.param_groups[1]["params"] == list(other.parameters())
    train(following, optimizer, 1)
    with pytest.raises(InputError, match="migrate: expected an optimizer of the module before the last step"):
        pruner.migrate(torch.optim.SGD(other.parameters()))


# -- checkpoints --


def test_a_loop_that_was_cut_off_ends_with_the_same_weights() -> None:
    whole = pruner_of(net(), steps=3, criterion="taylor", align=1)

    def run(pruner: edgeprune.Pruner, stop_at: int | None = None) -> dict[str, Any] | None:
        if not pruner.step:
            loss_of(pruner.module, 9).backward()
            pruner.observe()
        for module in pruner:
            train(module)
            loss_of(module, 9).backward()
            pruner.observe()
            if pruner.step == stop_at:
                return pruner.state_dict()
        return None

    run(whole)
    state = run(pruner_of(net(), steps=3, criterion="taylor", align=1), stop_at=2)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.manual_seed(7)
    resumed = pruner_of(Net(), steps=3, criterion="taylor", align=1)  # with other weights
    resumed.load_state_dict(torch.load(file, weights_only=True))
    module = next(resumed)
    assert resumed.step == 2
    train(module, steps=0)
    run(resumed)
    assert resumed.plan == whole.plan
    assert all(torch.equal(resumed.program.state_dict[name], t) for name, t in whole.program.state_dict.items())


# -- budgets --


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))


def test_a_size_is_held_by_the_file(tmp_path: Path) -> None:
    pruner = edgeprune.Pruner(mlp(), torch.randn(2, 8), max_size="2kB", steps=1, align=1)
    assert edgeprune.export_onnx(pruner.program, tmp_path / "dense.onnx").size_bytes > 3000
    next(pruner)
    assert 1700 < edgeprune.export_onnx(pruner.program, tmp_path / "slim.onnx").size_bytes <= 2000


@pytest.mark.parametrize("others", [{}, {"max_size": "6kB", "keep_macs": 0.9}], ids=["alone", "and others"])
def test_live_activations_are_held(tmp_path: Path, others: dict[str, Any]) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    before = peak_activations(edgeprune.capture(model, x)).n_bytes
    pruner = edgeprune.Pruner(model, x, max_ram=before // 2, steps=2, align=1, **others)
    for _ in pruner:
        pass
    assert 0.7 * before / 2 < peak_activations(pruner.program).n_bytes <= before // 2
    pruner.save(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["slim"]["peak_bytes"] <= before // 2 < record["dense"]["peak_bytes"]
    assert record["asked"]["max_ram"] == before // 2


def test_a_budget_that_cannot_be_met_is_told_at_once() -> None:
    with pytest.raises(
        BudgetError,
        match="max_ram 20 cannot be met by what is planned for: .* MACs; in the way: .*live activations take",
    ):
        edgeprune.Pruner(mlp(), torch.randn(2, 8), max_ram=20)
    with pytest.raises(BudgetError, match="0.001 of the MACs cannot be met.* in the way: .*second"):
        pruner_of(net(), keep_macs=0.001)
    with pytest.raises(
        BudgetError, match="max_size 400 cannot be met by what is planned for: expected at most .* bytes; in the way"
    ):
        edgeprune.Pruner(mlp(), torch.randn(2, 8), max_size=400)


def test_a_latency_is_foretold_by_the_profile_of_another_device(tmp_path: Path) -> None:
    dense = edgeprune.capture(mlp(), torch.randn(2, 8))
    shapes = layer_shapes(edgeprune.analyze(dense)).values()
    widths = ((a, b) for a in (3, 8, 16, 32, 64) for b in (3, 8, 16, 32, 64))
    points = tuple(Point(shape.key, a, b, 1e-4 * a * b) for a, b in widths for shape in list(shapes)[:1])
    profile = tmp_path / "device.json"
    profile.write_text(Device("a runtime 1.0", "a processor", 1, 1, points).to_json())
    pruner = edgeprune.Pruner(mlp(), torch.randn(2, 8), keep_latency="0.5x", device=profile, steps=2, align=1)
    shares = [macs(pruner.program) / macs(dense) for _ in pruner]
    assert 0.6 < shares[0] < 0.75 and 0.4 < shares[1] <= 0.5
    state = pruner.state_dict()
    again = edgeprune.Pruner(mlp(), torch.randn(2, 8), keep_latency="0.5x", device=profile, steps=2, align=1)
    again.load_state_dict(state)
    assert again.state_dict()["goals"] == state["goals"]


# -- one's own class --


def test_a_class_of_ones_own_shrinks_step_by_step() -> None:
    model = net()
    pruner = pruner_of(model, appliable=True, criterion="taylor")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    widths = [model.first.out_channels]
    while pruner.step < pruner.steps:
        train(model, optimizer)
        loss_of(model, 9).backward()
        assert pruner.observe(model)
        pruner.shrink(model)
        pruner.migrate(optimizer)
        widths.append(model.first.out_channels)
    assert widths[0] > widths[-1]
    train(model, optimizer)
    pruner.take(model)
    assert same_outputs(model, pruner.program.module(), images())
    with pytest.raises(InputError, match="shrink: expected a step that is left, got all 2 made"):
        pruner.shrink(model)


def test_layers_may_be_called_as_what_a_graph_calls_its_own() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.meta, self.graph = nn.Linear(6, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.graph(torch.relu(self.meta(x)))

    torch.manual_seed(0)
    model = Named()
    pruner = edgeprune.Pruner(model, torch.randn(2, 6), keep_macs=0.5, steps=2, align=1, criterion="taylor")
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.randn(4, 6)).square().mean().backward()
        assert pruner.observe(model)
        optimizer.step()
        pruner.shrink(model)
        assert len(pruner.migrate(optimizer).carried) == 4
    assert model.meta.out_features == 16


# -- the run folder --


def test_the_run_folder_is_read_by_export_and_claims_no_accuracy(tmp_path: Path) -> None:
    pruner = pruner_of(net())
    with pytest.raises(InputError, match="save: expected a network that was pruned, got none"):
        pruner.save(tmp_path / "run")
    for module in pruner:
        train(module)
    pruner.save(tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"slim.pt2", "plan.json", "run.json", "report.html"}
    record = run_from_json((tmp_path / "run/run.json").read_text())
    assert record.accuracy is None and record.slim.test_value is None and record.data is None
    assert record.slim.macs / record.dense.macs <= 0.4
    assert [step.step for step in record.steps] == [1, 2]
    assert record.command.startswith("edgeprune.Pruner(model, example_inputs, keep_macs=0.4, ")
    assert json.loads((tmp_path / "run/plan.json").read_text())["source_sha256"] == record.model["sha256"]
    page = (tmp_path / "run/report.html").read_text()
    assert "Accuracy was not measured." in page and "Test accuracy" not in page
    assert same_outputs(load(tmp_path / "run/slim.pt2").program.module(), module, images())
    export(ExportRequest(model=str(tmp_path / "run/slim.pt2")))
    assert (tmp_path / "run/slim.onnx").is_file()
    with pytest.raises(InputError, match="--force"):
        pruner.save(tmp_path / "run")
