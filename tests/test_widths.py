"""One network at several widths: sorted, nested, trained together, and its one file of weights in onnxruntime."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console, RenderableType
from torch import Tensor, nn

from edgeprune import runrecord
from edgeprune.commands.budgets import decide
from edgeprune.commands.validate_widths import validate_widths
from edgeprune.errors import InputError, PlanError
from edgeprune.export import ort
from edgeprune.export.gated import WEIGHTS
from edgeprune.formats.digests import digest
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program, capture
from edgeprune.measure.networkfile import opened
from edgeprune.measure.validation import run_both
from edgeprune.progress import Silent
from edgeprune.pruning.surgery import cut
from edgeprune.records import ACCURACY, DataSource
from edgeprune.report import terminal
from edgeprune.requests import CompressRequest, ValidateRequest
from edgeprune.results import SharedWeights
from edgeprune.search.candidate import Budgets, Found, Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.step import Step
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.regression import Regression
from edgeprune.units import parse_widths
from edgeprune.widths.module import WidthsModule
from edgeprune.widths.nested import NestedWidths, check_nested
from edgeprune.widths.planning import nested_widths, planned_widths
from edgeprune.widths.shared import write_widths
from edgeprune.widths.slices import slice_of
from edgeprune.widths.strategy import Widths
from edgeprune.widths.task import Sandwich

CNN = Path(__file__).parent.parent / "models" / "digits_cnn.pt"
SHARES = (1.0, 0.5, 0.25)


class Residual(nn.Module):
    """Channels that are added, joined with others, grouped and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.side = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(24 * 4, 20)
        self.last = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.cat([y + self.inner(y), torch.relu(self.side(x))], dim=1)
        return cast(Tensor, self.last(torch.relu(self.head(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)))))


class Halves(nn.Module):
    """The first half of the channels goes another way than the second: they are no equals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        return cast(Tensor, self.last(torch.cat([torch.relu(first), torch.tanh(second)], dim=1)))


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def nested_of(
    net: nn.Module, example: Tensor, shares: tuple[float, ...] = SHARES
) -> tuple[Program, NestedWidths, Told]:
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    cutter = Cutter(capture(net, example), Manner(align=1), None)
    told = Told()
    nested, error = nested_widths(cutter, planned_widths(cutter, shares), told)
    assert error < 1e-5
    return cutter.dense.program, nested, told


@pytest.fixture(scope="module")
def residual() -> tuple[Program, NestedWidths, Told]:
    torch.manual_seed(0)
    return nested_of(Residual(), torch.randn(4, 3, 8, 8))


@pytest.fixture(scope="module")
def trained(digits: DataSource) -> Found:
    """The digits' CNN, trained for an epoch at three widths."""
    model = load(str(CNN))
    dense = Program.adopt(model.program)
    normalization = model.info.normalization
    assert normalization is not None
    settings = TrainSettings(epochs=1, batch_size=128, lr=1e-3, threads=1)
    samples = DataTrainer(digits, normalization, settings, CLASSIFICATION, dense.frozen_module())
    step = Step(Cutter(dense, Manner(criterion="l2"), samples), samples, Silent())
    return Widths(SHARES, replace(samples, task=Sandwich(CLASSIFICATION))).search(step, Budgets())


def nested(found: Found) -> NestedWidths:
    plans = tuple(network.within for network in found.networks[1:])
    return NestedWidths(tuple(network.program for network in found.networks), cast(Any, plans))


def printed(what: RenderableType) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def answers(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, program.frozen_module()(x))


# -- sorting and nesting


def test_the_order_of_the_units_changes_no_output(residual: tuple[Program, NestedWidths, Told]) -> None:
    dense, widths, told = residual
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(answers(widths.programs[0], x), answers(dense, x))
    assert not torch.equal(widths.programs[0].state_dict["head.weight"], dense.state_dict["head.weight"])
    assert told.said == []


def test_narrower_widths_are_the_first_units(residual: tuple[Program, NestedWidths, Told]) -> None:
    _, widths, _ = residual
    for plan in widths.plans:
        for name in ("stem.weight", "side.weight", "head.bias"):
            kept = plan.tensors.get(name, {}).get(0, (0,))
            assert kept == tuple(range(len(kept)))
    sizes = [program.state_dict["head.weight"].shape for program in widths.programs]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_units_that_are_no_equals_stay_where_they_are() -> None:
    torch.manual_seed(3)
    dense, widths, told = nested_of(Halves(), torch.randn(4, 6), (1.0, 0.6))
    assert told.said == ["units that are no equals stay in their order: stem"]
    x = torch.randn(5, 6)
    torch.testing.assert_close(answers(widths.programs[0], x), answers(dense, x))
    module = WidthsModule(widths).eval()
    with torch.no_grad():
        torch.testing.assert_close(module(x)[1], answers(widths.programs[1], x))


def test_the_widest_may_be_narrower_than_the_dense_network() -> None:
    torch.manual_seed(0)
    dense, widths, _ = nested_of(Residual(), torch.randn(4, 3, 8, 8), (0.7, 0.3))
    assert widths.programs[0].state_dict["head.weight"].numel() < dense.state_dict["head.weight"].numel()
    assert widths.plans[0].source_sha256 == digest(widths.programs[0])


def test_plans_that_are_not_nested_are_refused(residual: tuple[Program, NestedWidths, Told]) -> None:
    wider, narrower = residual[1].plans
    check_nested(wider, narrower)
    with pytest.raises(PlanError, match="the narrower network's units among the wider one's, got others in dim"):
        check_nested(narrower, wider)


# -- training


def test_gradients_add_up_in_the_widest_networks_weights(residual: tuple[Program, NestedWidths, Told]) -> None:
    _, widths, _ = residual
    module = WidthsModule(widths)
    assert [name for name, _ in module.named_parameters()] == [
        f"widest.{name}" for name, _ in module.widest.named_parameters()
    ]
    x = torch.randn(6, 3, 8, 8)
    outputs = module.eval()(x)
    for own, program in zip(outputs, widths.programs, strict=True):
        torch.testing.assert_close(own.detach(), answers(program, x))
    weight = dict(module.widest.named_parameters())["head.weight"]
    [gradient] = torch.autograd.grad(outputs[2].square().sum(), [weight], retain_graph=True)
    rows = widths.plans[1].tensors["head.weight"][0]
    assert gradient[: len(rows)].abs().sum() > 0 and gradient[len(rows) :].abs().sum() == 0
    parts = [torch.autograd.grad(own.sum(), [weight], retain_graph=True)[0] for own in outputs]
    [together] = torch.autograd.grad(sum(own.sum() for own in outputs), [weight])
    torch.testing.assert_close(together, sum(parts))


def test_each_width_has_statistics_of_its_own(residual: tuple[Program, NestedWidths, Told]) -> None:
    _, widths, _ = residual
    module = WidthsModule(widths).train()
    before = [buffer.clone() for name, buffer in module.named_buffers() if name.endswith("running_mean")]
    module(torch.randn(8, 3, 8, 8))
    after = [buffer for name, buffer in module.named_buffers() if name.endswith("running_mean")]
    assert len(after) == 3 and not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_the_widest_learns_the_task_and_the_others_what_it_answers() -> None:
    task, y = Sandwich(CLASSIFICATION), torch.tensor([0, 2])
    wide, narrow = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    loss = task.loss((wide, narrow), y)
    distilled = CLASSIFICATION.distillation(narrow, wide.detach())
    assert distilled is not None
    torch.testing.assert_close(loss, (CLASSIFICATION.loss(wide, y) + distilled) / 2)
    own, alone = (
        torch.autograd.grad(loss, [wide], retain_graph=True),
        torch.autograd.grad(CLASSIFICATION.loss(wide, y), [wide]),
    )
    torch.testing.assert_close(own[0], alone[0] / 2)  # what it answers is no target that moves
    assert task.value(task.outcomes((torch.eye(3), torch.eye(3)[[0, 0, 0]]), torch.arange(3))) == pytest.approx(2 / 3)


def test_a_task_of_numbers_trains_all_widths_and_is_judged_by_all() -> None:
    task, y = Sandwich(Regression()), torch.tensor([[0.0], [1.0]])
    outputs = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert task.value(task.outcomes(outputs, y)) == pytest.approx(1.0)
    assert float(task.loss(outputs, y)) > 0 == float(Regression().loss(outputs[0], y))


def test_each_width_is_exactly_the_widest_one_cut(trained: Found, digits: DataSource) -> None:
    widths = nested(trained)
    widest = widths.programs[0]
    x = torch.randn(16, *digits.input_shape)
    for plan, program in zip(widths.plans, widths.programs[1:], strict=True):
        again = cut(widest, replace(plan, source_sha256=digest(widest)))
        for name in program.graph_signature.parameters:
            assert torch.equal(again.state_dict[name], program.state_dict[name]), name
        buffers = {name: program.state_dict[name] for name in program.graph_signature.buffers}
        assert torch.equal(answers(again.with_tensors(buffers), x), answers(program, x))


def test_widths_fall_and_their_plans_of_the_dense_network_are_nested(trained: Found) -> None:
    ratios = [network.macs / trained.dense.macs for network in trained.networks]
    assert ratios[0] == 1 and 0.4 < ratios[1] <= 0.5 and 0.2 < ratios[2] <= 0.25
    plans = [network.plan for network in trained.networks]
    assert plans[0] is not None and plans[0].tensors == {}
    check_nested(cast(Any, plans[1]), cast(Any, plans[2]))
    cut(trained.dense.program, cast(Any, plans[2]))  # it replays
    assert all(network.val_value is not None for network in trained.networks)
    assert trained.networks[0].val_value > 0.95  # type: ignore[operator]


def test_widths_that_alignment_makes_equal_are_refused() -> None:
    cutter = Cutter(Program.adopt(load(str(CNN)).program), Manner(align=32), None)
    with pytest.raises(
        InputError, match=r"--widths 0\.49: expected a narrower network than that of 0\.5, got the same"
    ):
        planned_widths(cutter, (0.5, 0.49))


# -- files


NAMES = ("1", "0.5", "0.25")


@pytest.fixture(scope="module")
def written(trained: Found, digits: DataSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SharedWeights]:
    """The folder of the files, and what is told of them."""
    folder = tmp_path_factory.mktemp("widths")
    x = torch.randn(20, *digits.input_shape, generator=torch.Generator().manual_seed(0)).numpy()
    return folder, write_widths(nested(trained), NAMES, folder, inputs=x, task=CLASSIFICATION)


def test_one_file_of_weights_serves_all_widths(
    trained: Found, digits: DataSource, written: tuple[Path, SharedWeights]
) -> None:
    folder, shared = written
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {WEIGHTS, *(f"{name}.onnx" for name in NAMES)}
    assert shared.size_bytes == sum(files.values()) <= 1.05 * shared.largest_bytes
    x = torch.randn(9, *digits.input_shape)
    for name, network in zip(NAMES, trained.networks, strict=True):
        got, want = ort.run(ort.session(folder / f"{name}.onnx"), x.numpy()), answers(network.program, x).numpy()
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1.0, float(np.abs(want).max())))
        proto = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        assert all(len(tensor.raw_data) < 512 for tensor in proto.graph.initializer)
    narrow = {t.name: t for t in onnx.load(folder / "0.25.onnx", load_external_data=False).graph.initializer}
    rows = trained.networks[2].program.state_dict["4.weight"].shape[0]
    assert narrow["4.weight.shared"].dims[0] == rows < 64  # no more than its rows are read


def test_a_widths_file_is_validated_as_any_other(digits: DataSource, written: tuple[Path, SharedWeights]) -> None:
    folder, _ = written
    files = [opened(folder / f"{name}.onnx", digits, CLASSIFICATION) for name in ("1", "0.25")]
    normalization = load(str(CNN)).info.normalization
    assert normalization is not None
    wide, narrow = (replace(file, normalization=normalization) for file in files)
    assert narrow.size_bytes > (folder / WEIGHTS).stat().st_size
    found = run_both(wide, narrow, digits, CLASSIFICATION, Silent())
    assert CLASSIFICATION.value(found.outcomes[0]) > 0.95
    assert CLASSIFICATION.value(found.outcomes[1]) < CLASSIFICATION.value(found.outcomes[0])


def test_all_widths_are_validated_by_their_folder(written: tuple[Path, SharedWeights]) -> None:
    folder, _ = written
    asked = ValidateRequest(str(folder / "1.onnx"), str(folder), "digits", 1.0, runs=10, normalize="data")
    found = validate_widths(asked)
    assert found.names == NAMES and found.widths[0].parity == 0
    accuracies = [record.compared.slim for record in found.widths]
    assert accuracies[0] == found.widths[2].compared.dense > accuracies[2]
    assert all(record.latency.slim_p50_ms > 0 for record in found.widths)
    assert [failure.split(":")[0] for failure in found.failures][-1] == "0.25"
    assert "width 0.25" in printed(terminal.validated(found))
    assert len(runrecord.to_dict(found)["widths"]) == 3


def test_a_folder_without_widths_is_refused(tmp_path: Path) -> None:
    asked = ValidateRequest("dense.onnx", str(tmp_path), "digits")
    with pytest.raises(InputError, match=r"expected the \.onnx files of several widths, such as 0\.5\.onnx, got none"):
        validate_widths(asked)
    (tmp_path / "widths").mkdir()
    (tmp_path / "widths" / "slim.onnx").touch()
    with pytest.raises(InputError, match=r"widths: expected the \.onnx files of several widths, .*, got 'slim.onnx'"):
        validate_widths(asked)


def test_units_that_are_not_sorted_are_gathered(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = Halves()
    _, widths, _ = nested_of(net, torch.randn(4, 6), (1.0, 0.6))
    shared = write_widths(widths, ("1", "0.6"), tmp_path)
    assert shared.parity < 1e-4


@pytest.mark.parametrize("dim", [0, 1])
def test_a_slice_is_found_with_the_factor_of_its_rows(dim: int) -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(6, 5, 3)).astype(np.float32)
    wide[0] = 0
    shape = [1, 1, 1]
    shape[dim] = (4, 3)[dim]
    factor = rng.uniform(0.5, 2, size=shape).astype(np.float32)
    found = slice_of(wide, wide[:4, :3] * factor, {})
    assert found is not None and found.factor is not None and found.n_first(0) == 4 and found.n_first(1) == 3
    np.testing.assert_allclose(wide[:4, :3] * found.factor, wide[:4, :3] * factor, rtol=1e-6)


def test_a_slice_is_found_where_the_plan_says_or_not_at_all() -> None:
    wide = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    kept = {0: np.array([1, 4])}
    found = slice_of(wide, wide[[1, 4]], kept)
    assert found is not None and found.factor is None and found.n_first(0) is None
    turned = slice_of(wide.T.copy(), wide[[1, 4]].T.copy(), kept)
    assert turned is not None and turned.dims.keys() == {1}
    assert slice_of(wide, wide[[0, 3]], kept) is None
    assert slice_of(wide, np.zeros((7, 5), np.float32), {}) is None


# -- what is asked for


def test_widths_are_shares_that_rise_or_fall() -> None:
    assert parse_widths("0.25,0.5,1") == parse_widths("1,0.5,0.25") == (1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", r"--widths: expected 2 to 8 widths of one network, got 1 \(0\.5\)"),
        ("0.25,1,0.5", r"--widths: expected widths that fall \(or rise\) from each to the next, got 0\.25,1,0\.5"),
        ("0.5,0.5", r"expected widths that fall \(or rise\) .* got 0\.5,0\.5"),
        ("0.5,1.5", r"--widths: expected shares of the MACs in \(0, 1\], got 1\.5"),
        ("0,1", r"shares of the MACs in \(0, 1\], got 0"),
        ("nan,1", r"shares of the MACs in \(0, 1\], got nan"),
        ("half,1", "expected shares of the MACs such as 0.25,0.5,1, got 'half,1'"),
        ("", "expected shares of the MACs such as 0.25,0.5,1, got ''"),
        ("0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9", "expected 2 to 8 widths of one network, got 9"),
    ],
)
def test_widths_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_widths(text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep_macs": 0.5}, "--widths: expected no --keep-macs, which says the MACs otherwise, got --keep-macs 0.5"),
        ({"pareto": 3}, "expected no --pareto, whose networks share no weights, got --pareto 3"),
        ({"max_latency": "5ms"}, "expected no --max-latency, which is no share of the MACs, got --max-latency 5ms"),
        ({"max_size": "5kB"}, "expected no --max-size"),
        ({"max_ram": "5kB"}, "expected no --max-ram"),
        ({"plan": "p.json"}, "expected no --plan, which is one cut, got --plan p.json"),
        ({"allocation": "sensitivity"}, "expected no --allocation, .*, got --allocation sensitivity"),
        ({"prune_schedule": "one-shot"}, "expected no --prune-schedule"),
        ({"depth": True}, "expected no --depth, .* got --depth$"),
        ({"layer_ratios": ("a=0.5",)}, "expected no --layer-ratio, .* got --layer-ratio a=0.5"),
        ({"appliable": True}, "expected no --keep-equal-chunks"),
        ({"input_features": "20"}, "expected no --input-features, as all widths take the same inputs, got"),
        ({"finetune": "f.py:f"}, "expected no --finetune, which trains or judges one network at a time"),
        ({"widths": (0.5, 1.0)}, "--widths: expected the widest first, got 0.5, 1"),
    ],
)
def test_what_says_something_else_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("model.pt", **{"widths": (1.0, 0.5), **asked}), ACCURACY)


def test_widths_need_data_and_leave_the_inputs_and_the_weights_alone() -> None:
    with pytest.raises(InputError, match="--widths: expected data to train the widths together on, got none"):
        decide(CompressRequest("model.pt", widths=(1.0, 0.5)), None)
    decision = decide(CompressRequest("model.pt", widths=(1.0, 0.5)), ACCURACY)
    assert decision.budgets == Budgets() and not decision.manner.reconstruct
    assert decision.assumed == (
        "--max-drop 1 (of the networks, the smallest within it is taken)",
        "--criterion taylor",
    )
