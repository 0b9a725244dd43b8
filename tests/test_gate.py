"""A gate that picks the width of each sample: what it reads, how it learns, and its one file in onnxruntime."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from edgeprune import runrecord
from edgeprune.commands import compress as compressing
from edgeprune.commands import gatefile
from edgeprune.commands.budgets import decide
from edgeprune.commands.compress import compress
from edgeprune.commands.gate import check_reachable, gate_macs, mac_shares
from edgeprune.commands.runfolder import widths_of_run
from edgeprune.commands.validate import validate
from edgeprune.commands.validate_widths import validate_widths
from edgeprune.cost.macs import macs
from edgeprune.data.splits import TensorSplit
from edgeprune.errors import BudgetError, InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.gated import WEIGHTS, OneByOne, gated_in
from edgeprune.export.onnx import export_onnx
from edgeprune.graph.capture import Program, capture
from edgeprune.measure.gated import mean_time
from edgeprune.progress import Silent
from edgeprune.records import ACCURACY, IDENTITY
from edgeprune.report import terminal
from edgeprune.requests import CompressRequest, ValidateRequest
from edgeprune.results import FrontPoint, RunRecord
from edgeprune.search.candidate import Manner, Measured
from edgeprune.search.cutter import Cutter
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from edgeprune.tasks.regression import Regression
from edgeprune.training import Judge
from edgeprune.units import GateLimit, parse_gate
from edgeprune.widths.gate import Gate, Pooled, check_gated, gate_program
from edgeprune.widths.gatefile import GatedWidth, checked_gated, write_gated
from edgeprune.widths.gating import Learnt, learnt_gate, price_for
from edgeprune.widths.nested import NestedWidths
from edgeprune.widths.planning import nested_widths, planned_widths
from edgeprune.widths.shared import write_widths

MLP = Path(__file__).parent.parent / "models" / "digits_mlp.pt"
NAMES = ("1", "0.5", "0.25")


class Stemmed(nn.Module):
    """A stem of a convolution with batch norm, a residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(y + self.inner(y))
        return cast(Tensor, self.last(y.mean(dim=(2, 3))))


class Loop(nn.Module):
    """Adds its input to what is made of it: the way parts at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.last((x + self.inner(x)).flatten(1)))


@pytest.fixture(scope="module")
def nested() -> NestedWidths:
    torch.manual_seed(0)
    cutter = Cutter(capture(Stemmed().eval(), torch.randn(4, 1, 9, 8)), Manner(align=1), None)
    return nested_widths(cutter, planned_widths(cutter, (1.0, 0.5, 0.25)), Silent())[0]


@pytest.fixture(scope="module")
def split() -> TensorSplit:
    x = torch.randn(300, 1, 9, 8, generator=torch.Generator().manual_seed(1))
    return TensorSplit(x, torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(2)))


@pytest.fixture(scope="module")
def gate(nested: NestedWidths, split: TensorSplit) -> Gate:
    """One that has learnt nothing true, yet picks each width for a part of the samples."""
    torch.manual_seed(0)
    made = Gate.blank(Pooled.of(nested.programs[-1]), nested.programs)
    with torch.no_grad():
        made.linear.bias -= made.linear(made.pooled(split.x)).mean(dim=0)
    assert set(made(split.x).tolist()) == {0, 1, 2}
    return made


# -- what it reads


def test_the_stem_ends_where_the_way_parts(nested: NestedWidths) -> None:
    narrowest = nested.programs[-1]
    pooled = Pooled.of(narrowest)
    state = narrowest.state_dict
    x = torch.randn(2, 1, 9, 8)
    with torch.no_grad():
        y = nn.functional.conv2d(x, state["stem.weight"], state["stem.bias"], padding=1)
        names = ("norm.running_mean", "norm.running_var", "norm.weight", "norm.bias")
        y = torch.relu(nn.functional.batch_norm(y, *(state[name] for name in names)))
        torch.testing.assert_close(pooled(x), nn.functional.avg_pool2d(y, (2, 2)).flatten(1))
    picking = gate_macs(pooled, nested.programs)
    n_stem, n_read = state["stem.weight"].shape[0], int(pooled(x).shape[1])
    assert picking == n_stem * 9 * 72 + 3 * n_read
    assert mac_shares(nested.programs, picking)[0] == 1 + picking / macs(nested.programs[0])


@pytest.mark.parametrize(
    ("net", "shape"), [(Loop(), (1, 8, 8)), (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8))]
)
def test_without_a_stem_it_reads_the_input(net: nn.Module, shape: tuple[int, ...]) -> None:
    pooled = Pooled.of(capture(net.eval(), torch.randn(4, *shape)))
    x = torch.randn(2, *shape)
    torch.testing.assert_close(pooled(x), nn.functional.avg_pool2d(x, 2).flatten(1))


def test_rows_of_a_table_are_read_as_they_are() -> None:
    x = torch.randn(4, 6)
    assert torch.equal(Pooled.of(capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), x))(x), x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, self.last(x + y))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (capture(Two(), (torch.randn(4, 6), torch.randn(4, 6))), "--gate: expected a network with one input, .* got 2"),
        (
            capture(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2)), torch.ones(4, 5).long()),
            "--gate: expected an input of real numbers to pool, got int64",
        ),
        (
            capture(
                nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1)), torch.randn(2, 1, 8, 8), dynamic_size=True
            ),
            "--gate: expected inputs of one size, .* got free ones",
        ),
    ],
)
def test_inputs_that_no_gate_reads_are_refused(program: Program, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_gated(program)


# -- how it learns


def test_the_price_meets_the_mean_cost_and_no_more() -> None:
    rng = np.random.default_rng(0)
    scores, costs = rng.normal(size=(500, 3)), np.array([1.0, 0.5, 0.2])
    most = float(costs[scores.argmax(axis=1)].mean())  # where nothing is asked
    for budget in (0.2, 0.3, 0.45, 1.0):
        net = scores - price_for(scores, costs, budget) * costs
        best = np.sort(net, axis=1)
        cost = costs[net.argmax(axis=1)].mean()
        assert min(budget, most) - 1 / 500 <= cost <= budget + 1e-12
        assert (best[:, 2] - best[:, 1]).min() > 1e-9  # no sample is on the brink
    free = scores[:, 0] + 9
    assert price_for(np.stack([free, scores[:, 1], scores[:, 2]], axis=1), costs, 1.0) < 9


class Mistaken(nn.Module):
    """Knows the sign of the first number, but for samples of which the second is large."""

    def __init__(self, mistaken: float) -> None:
        super().__init__()
        self.by = mistaken

    def forward(self, x: Tensor) -> Tensor:
        known = 9 * x[:, :1] + self.by * torch.relu(x[:, 1:2])
        return torch.cat([-known, known], dim=1)


def test_hard_samples_go_to_the_width_that_knows_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    y = (x[:, 0] > 0).long()
    programs = [capture(Mistaken(by), x) for by in (0.0, 30.0)]
    known = float((programs[1].frozen_module()(x).argmax(dim=1) == y).float().mean())
    assert known < 0.8
    split, pooled = TensorSplit(x, y), Pooled(None)
    ask = {"judge": Judge(CLASSIFICATION, IDENTITY), "splits": (split, split), "progress": Silent()}
    found = learnt_gate(programs, pooled, (1.0, 0.1), 0.6, **ask)  # type: ignore[arg-type]
    assert 0.5 < found.cost <= 0.6 and sum(found.picked) == pytest.approx(1)
    picks = found.gate(pooled)(x)
    assert float((picks == 0).float().mean()) == pytest.approx(found.picked[0])
    assert found.value > 0.95 > known + found.picked[0] * (1 - known)  # which a draw of as many would have right
    again = Learnt.from_plain(found.as_plain)
    assert np.array_equal(again.weight, found.weight) and again.as_plain == found.as_plain
    with pytest.raises(BudgetError, match=r"--gate: expected a mean cost of at least 0\.100 .* got 0\.05"):
        learnt_gate(programs, pooled, (1.0, 0.1), 0.05, **ask)  # type: ignore[arg-type]


def test_of_numbers_the_width_with_the_smaller_loss_is_picked() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    wide, narrow = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        wide.weight.copy_(torch.tensor([[1.0, 1.0]]))
        narrow.weight.copy_(torch.tensor([[1.0, 0.0]]))
        wide.bias.zero_(), narrow.bias.zero_()
    split = TensorSplit(x.abs(), x.abs().sum(dim=1, keepdim=True))
    programs = [capture(net, x) for net in (wide, narrow)]
    found = learnt_gate(
        programs,
        Pooled(None),
        (1.0, 0.1),
        0.55,
        judge=Judge(Regression(), IDENTITY),
        splits=(split, split),
        progress=Silent(),
    )
    picks = found.gate(Pooled(None))(split.x)
    assert split.x[picks == 0, 1].min() > split.x[picks == 1, 1].median()


def test_without_labels_the_width_that_answers_as_the_dense_network_is_picked() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 3)
    programs = [capture(Mistaken(by), x) for by in (0.0, 30.0)]
    judge = Judge(Match(), IDENTITY, programs[0].frozen_module())
    split = TensorSplit(x, None)
    ask = {"judge": judge, "splits": (split, split), "progress": Silent()}
    found = learnt_gate(programs, Pooled(None), (1.0, 0.1), 0.55, **ask)  # type: ignore[arg-type]
    picks = found.gate(Pooled(None))(x)
    assert x[picks == 0, 1].mean() > 0.3 > -0.3 > x[picks == 1, 1].mean()


def test_a_share_of_the_time_counts_what_the_gate_takes(nested: NestedWidths) -> None:
    def gauge(program: Program, surely: bool) -> Measured:
        return Measured(ms=0.5 if surely else 9.0, dense_ms=1.0, size_bytes=1, dense_bytes=1)

    front = [FrontPoint("", 1.0, None, p50, 1.0, 1, False) for p50 in (10.0, 4.0, 2.0)]
    job = cast(Any, SimpleNamespace(gauge=gauge))
    found = gatefile._times(job, Pooled.of(nested.programs[-1]), nested.programs, front)
    assert found == pytest.approx([1.05, 0.45, 0.25])


# -- its file


@pytest.fixture(scope="module")
def written(nested: NestedWidths, gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widths")
    write_widths(nested, NAMES, folder)
    export_onnx(gate_program(gate, nested.programs[-1]), folder / "alone.onnx")
    widths = [
        GatedWidth(name, folder / f"{name}.onnx", macs(program))
        for name, program in zip(NAMES, nested.programs, strict=True)
    ]
    write_gated(folder / "gate.onnx", widths, folder / "alone.onnx", gate_macs(gate.pooled, nested.programs))
    return folder / "gate.onnx"


def test_the_file_answers_as_the_width_that_pytorch_picks(
    written: Path, nested: NestedWidths, gate: Gate, split: TensorSplit
) -> None:
    onnx.checker.check_model(str(written))
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        picks = gate(split.x).tolist()
        wanted = [program.frozen_module()(split.x).numpy() for program in nested.programs]
    for row, pick in enumerate(picks):
        answer, width = session.run(None, {session.get_inputs()[0].name: split.x[row : row + 1].numpy()})
        assert width.tolist() == [pick]
        np.testing.assert_allclose(answer[0], wanted[pick][row], rtol=0, atol=1e-4 * max(1, np.abs(wanted[pick]).max()))
    assert checked_gated(written, nested.programs, gate, split, IDENTITY, Silent()) < 1e-4


def test_a_gate_that_picks_otherwise_than_its_file_is_found(
    written: Path, nested: NestedWidths, gate: Gate, split: TensorSplit
) -> None:
    other = Gate.blank(gate.pooled, nested.programs)
    with pytest.raises(ParityError, match=r"gate\.onnx: expected the width that PyTorch picks, got another for \d+"):
        checked_gated(written, nested.programs, other, split, IDENTITY, Silent())
    wrong = (nested.programs[1], *nested.programs[1:])
    with pytest.raises(ParityError, match=r"gate\.onnx at width 1: largest error"):
        checked_gated(written, wrong, gate, split, IDENTITY, Silent())


def test_widths_nest_and_the_file_has_no_weights_of_its_own(written: Path) -> None:
    graph = onnx.load(written, load_external_data=False).graph
    first = next(node for node in graph.node if node.op_type == "If")
    rest = next(attribute.g for attribute in first.attribute if attribute.name == "else_branch")
    assert [node.op_type for node in rest.node] == ["Equal", "If"]
    shared = [tensor for tensor in graph.initializer if tensor.external_data]
    assert {tensor.external_data[0].value for tensor in shared} == {WEIGHTS}
    assert {tensor.name.split("/")[0] for tensor in shared} == {"w0", "w1", "w2"}
    branch = next(attribute.g for attribute in first.attribute if attribute.name == "then_branch")
    assert not any(tensor.external_data for tensor in branch.initializer)  # browsers do not look there


def test_a_batch_is_refused_by_the_runtime_and_taken_apart_by_validate(written: Path, split: TensorSplit) -> None:
    session = ort.session(written)
    name = session.get_inputs()[0].name
    with pytest.raises(InputError, match="Got invalid dimensions for input"):
        ort.run_by_name(session, {name: split.x[:2].numpy()})
    outputs = [value.name for value in session.get_outputs()]
    gated = gated_in(session.get_modelmeta().custom_metadata_map, outputs, "gate.onnx")
    assert gated is not None and gated.widths == NAMES and gated.output == outputs[-1] == "width"
    plain = OneByOne(session, gated)
    [answers] = plain.run(None, {name: split.x[:5].numpy()})
    assert answers.shape == (5, 3) and len(plain.picked) == 5
    picks = np.array([0, 2])
    assert gated.mean_macs(picks) == (gated.macs[0] + gated.macs[2]) / 2 + gated.gate_macs


def test_a_mean_time_is_that_of_each_width_by_how_often_it_is_picked() -> None:
    times, picks = np.array([1.0, 1.0, 9.0, 4.0, 4.0]), np.array([0, 0, 0, 1, 1])
    assert mean_time(times, picks, np.array([0.25, 0.75])) == 0.25 * 1 + 0.75 * 4
    assert mean_time(times[:3], picks[:3], np.array([0.25, 0.75])) == 1


# -- the commands


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    """A run of the digits' MLP, its widths not trained."""
    out = tmp_path_factory.mktemp("run") / "run"
    request = CompressRequest(
        str(MLP), "digits", str(out), widths=(1.0, 0.6), gate="0.8", finetune_epochs=0, align=8, threads=1
    )
    return compress(request)


def test_a_run_says_what_its_gate_comes_to(made: tuple[Path, RunRecord]) -> None:
    folder, record = made
    shared = record.shared
    assert shared is not None and shared.gate is not None
    own = shared.gate
    assert (folder / own.file).stat().st_size == own.size_bytes and own.file == "widths/gate.onnx"
    assert 0.7 < own.cost <= 0.8 == own.asked and own.of == "MACs"
    assert own.macs_ratio == pytest.approx(own.cost)
    values = [point.val_value for point in record.front]
    assert cast(float, values[1]) - 0.01 <= own.value <= cast(float, values[0]) + 0.01
    assert own.size_bytes + (folder / "widths" / WEIGHTS).stat().st_size <= 1.05 * shared.largest_bytes
    assert runrecord.run_from_json((folder / "run.json").read_text()).shared == shared
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal.run(record, folder))
    told = console.export_text()
    assert (
        f"{own.cost:.3f} of the widest network's MACs in the mean over the validation split, at most 0.8 asked" in told
    )
    assert "a gate picks the width of each sample" in (folder / "report.html").read_text()


def test_validate_measures_the_gate_over_the_test_set(made: tuple[Path, RunRecord]) -> None:
    folder, record = made
    asked = ValidateRequest(str(folder / "widths" / "1.onnx"), str(folder), "digits", runs=20, max_latency_ratio=1e-9)
    found = validate_widths(asked)
    assert found.names == ("1", "0.6", "gate") and [one.gate is None for one in found.widths] == [True, True, False]
    own = found.widths[2]
    assert own.gate is not None and record.shared is not None and record.shared.gate is not None
    assert sum(own.gate.picked) == pytest.approx(1) and own.gate.slim_ms > 0 < own.gate.dense_ms
    assert own.gate.macs_ratio == pytest.approx(record.shared.gate.macs_ratio, abs=0.05)
    assert own.latency.ratio == pytest.approx(own.gate.slim_ms / own.gate.dense_ms)
    assert own.latency.ratio_interval[0] <= own.latency.ratio_interval[1]
    accuracies = [one.compared.slim for one in found.widths]
    assert min(accuracies[:2]) - 0.01 <= accuracies[2] <= max(accuracies[:2]) + 0.01
    assert found.failures[-1].startswith("gate: latency: at most 1e-09")
    assert "gate" in runrecord.to_dict(own) and "gate" not in runrecord.to_dict(found.widths[0])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal.validated(found))
    assert "mean MACs" in console.export_text()


def test_batches_leave_the_gate_out_and_say_so_first(made: tuple[Path, RunRecord]) -> None:
    folder, _ = made
    events: list[str] = []

    class Heard(Silent):
        def say(self, message: str) -> None:
            events.append(message)

        def stage(self, title: str) -> None:
            events.append(title)

    asked = ValidateRequest(str(folder / "widths" / "1.onnx"), str(folder), "digits", runs=5, batch_size=4)
    found = validate_widths(asked, Heard())
    assert found.names == ("1", "0.6") and {one.latency.batch_size for one in found.widths} == {4}
    assert events[0] == "left out: gate.onnx, which takes one sample at a time, of batches of 4"
    events.clear()
    with pytest.raises(InputError, match="--batch-size: expected 1, as the width is picked for each sample, got 4"):
        validate(replace(asked, slim=str(folder / "widths" / "gate.onnx")), Heard())
    assert not any("test split" in event for event in events), "before it runs"


def test_only_the_slim_network_of_a_run_has_its_widths(made: tuple[Path, RunRecord], tmp_path: Path) -> None:
    folder, record = made
    assert widths_of_run(folder / "slim.pt2") == folder / "widths"
    assert widths_of_run(folder / "other.pt2") is None
    (tmp_path / "widths").mkdir()
    assert widths_of_run(tmp_path / "slim.pt2") is None
    for text in (runrecord.to_json(replace(record, shared=None)), '{"format": "of something else"}'):
        (tmp_path / "run.json").write_text(text, encoding="utf-8")
        assert widths_of_run(tmp_path / "slim.pt2") is None


def test_a_run_that_is_stopped_after_the_gate_has_learnt_goes_on(
    made: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    request = CompressRequest(
        str(MLP), "digits", str(tmp_path / "run"), widths=(1.0, 0.6), gate="0.8", finetune_epochs=0, align=8, threads=1
    )

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compressing, "write_record", stopped)
        with pytest.raises((KeyboardInterrupt, InputError)):
            compress(request)
    assert (tmp_path / "run.compressing").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr("edgeprune.commands.gatefile.learnt_gate", stopped)  # it is not trained again
        again, _ = compress(replace(request, resume=True))
    for file in ("widths/gate.onnx", f"widths/{WEIGHTS}"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


# -- what is asked for


def test_a_gate_is_a_share_of_the_macs_or_of_the_time() -> None:
    assert parse_gate("0.6") == GateLimit(0.6) and parse_gate("0.6x") == GateLimit(0.6, True)
    assert str(GateLimit(0.6, True)) == "0.6x"


@pytest.mark.parametrize("text", ["0", "1.5", "-0.5", "nan", "half", "", "x", "0.6ms"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--gate: expected a share of the widest network's MACs in \(0, 1\]"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"widths": None}, r"--gate 0\.3: expected several widths to pick from, got none; give them, as --widths"),
        ({"widths": (1.0, 0.5)}, r"expected a mean share of .* MACs from 0\.5, the narrowest width's, to 1, got 0\.3"),
        ({"gate": "2"}, r"MACs in \(0, 1\].* got 2"),
    ],
)
def test_a_gate_that_cannot_be_met_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("model.pt", **{"widths": (1.0, 0.25), "gate": "0.3", **asked}), ACCURACY)


def test_what_the_gate_itself_costs_counts(nested: NestedWidths) -> None:
    least = macs(nested.programs[-1]) / macs(nested.programs[0])
    with pytest.raises(InputError, match=r"expected a mean share of at least 0\.\d+, which the narrowest width takes"):
        check_reachable(nested.programs, GateLimit(least), None)
