"""`edgeprune export --int8` by the task: what is judged, what decides which variant to ship, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.export import export
from edgeprune.data import batches, open_data
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.exact import may_saturate
from edgeprune.export.quanttools import cpu_in_words
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import IDENTITY, ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportRecord

TASK = """
from types import SimpleNamespace

class Both:
    metric = SimpleNamespace(name="off", unit="mm", scale=1.0, higher_is_better=False)
    def loss(self, outputs, targets):
        return (outputs["pair"][0][:, 0] - targets).abs().mean()
    def outcomes(self, outputs, targets):
        return (outputs["pair"][0][:, 0] - targets).abs()
    def value(self, outcomes):
        return float(sum(outcomes) / len(outcomes))

def both():
    return Both()
def raising():
    task = Both()
    task.value = lambda outcomes: 1 / 0
    return task
def wrong():
    task = Both()
    task.outcomes = lambda outputs, targets: 3
    return task
def nan():
    task = Both()
    task.value = lambda outcomes: float("nan")
    return task
"""


_INTEGERS = ("fp32", "int8", "dynamic")


class Both(nn.Module):
    """Two outputs in a tuple, and one beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict:
        inner = self.inner(x)
        return {"pair": (self.head(inner), inner), "norm": inner.sum(dim=1)}


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are taken, but not for long: nothing here goes by them."""
    monkeypatch.setattr("edgeprune.commands.variants._SECONDS", 0.01)
    monkeypatch.setattr("edgeprune.commands.export._SECONDS", 0.01, raising=False)
    monkeypatch.setattr("edgeprune.measure.exports._SECONDS", 0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    (folder / "tasks.py").write_text(TASK)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    images = rng.normal(size=(60, 1, 8, 8)).astype(np.float32)
    torch.manual_seed(0)
    nets = {
        "values": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        "flags": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
        "masks": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
        "both": Both(),
    }
    np.savez(folder / "values.npz", x=x, y=3 * x[:, 0])
    np.savez(folder / "flags.npz", x=x, y=np.stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 0] > x[:, 1]], axis=1).astype(int))
    np.savez(folder / "masks.npz", x=images, y=np.digitize(images[:, 0], [-0.5, 0.5]).astype(np.uint8))
    np.savez(folder / "wide.npz", x=images, y=np.digitize(images[:, 0], [-1, -0.5, 0, 0.5, 1]).astype(np.uint8))
    np.savez(folder / "none.npz", x=x)
    for name, net in nets.items():
        shape = (1, 8, 8) if name == "masks" else (6,)
        program = capture(net.eval(), torch.randn(2, *shape))
        save_program(folder / f"{name}.pt2", program, ModelInfo(shape, normalization=IDENTITY))
    return folder


def exported(
    place: Path, out: Path, name: str, data: str = "", told: Silent | None = None, **asked: object
) -> ExportRecord:
    fields = {"data": f"npz:{place / (data or name)}.npz", "out": str(out), "int8": True, "force": True, **asked}
    return export(ExportRequest(model=str(place / f"{name}.pt2"), **fields), told or Silent())


def answers(path: str, place: Path, data: str) -> tuple[np.ndarray, Tensor]:
    """What a file says of the validation split, and what is true there."""
    x, y = next(batches(open_data(f"npz:{place / data}.npz").val, 1000))
    return ort.run(ort.session(Path(path)), x.numpy()), y


def test_an_error_is_judged_in_its_unit(place: Path, tmp_path: Path) -> None:
    asked = {"task": "regression?unit=mmol", "max_drop": "0 mmol", "int8_for": "arm", "allow_chance": True}
    table = exported(place, tmp_path, "values", **asked).variants
    assert table.metric.name == "MAE" and [one.name for one in table.variants][:2] == ["fp32", "int8"]
    for variant in table.variants:
        outputs, y = answers(variant.path, place, "values")
        assert variant.value == pytest.approx(np.abs(outputs[:, 0] - y.numpy()).mean(), abs=1e-6)
        assert variant.drop == pytest.approx(variant.value - table.variants[0].value)
        assert variant.within_budget == (max(variant.drop, variant.exact_drop or 0) <= 0)
    worse = [one for one in table.variants if max(one.drop, one.exact_drop or 0) > 0]
    assert worse, "int8 costs something"
    assert all("out of budget: MAE rises by" in one.verdict and one.name != table.ship for one in worse)


def test_flags_and_masks(place: Path, tmp_path: Path) -> None:
    for name, metric in (("flags", "mAP"), ("masks", "mIoU")):
        found = exported(place, tmp_path / name, name).variants
        assert found.metric.name == metric and all(0 < one.value <= 1 for one in found.variants)
        assert all(one.drop == pytest.approx(100 * (found.variants[0].value - one.value)) for one in found.variants)


def test_the_answers_of_the_file_are_those_of_pytorch(place: Path, tmp_path: Path) -> None:
    """By the task: pixels for masks; numbers are no decisions."""
    command = [
        "export",
        str(place / "masks.pt2"),
        "--onnx",
        "--data",
        f"npz:{place / 'masks.npz'}",
        "--out",
        str(tmp_path),
    ]
    told = CliRunner().invoke(app, command)
    assert "12 inputs; 100.00 % of the answers are the same" in " ".join(told.output.split()), told.output
    assert exported(place, tmp_path, "values", int8=False).agreement is None
    assert exported(place, tmp_path, "both", "flags", int8=False).agreement is None, "to be exported it needs no task"


def test_match_goes_by_the_dense_network_where_it_is_at_hand(place: Path, tmp_path: Path) -> None:
    told = Told()
    found = exported(place, tmp_path, "both", "none", told).variants
    assert found.metric.name == "agreement" and found.variants[0].value == 1 and found.variants[1].value < 1
    assert any("the answers to meet are those of both.onnx" in text and "--dense" in text for text in told.said)
    torch.manual_seed(5)
    save_program(
        place / "other.pt2", capture(Both().eval(), torch.randn(2, 6)), ModelInfo((6,), normalization=IDENTITY)
    )
    told = Told()
    other = exported(place, tmp_path, "both", "none", told, dense=str(place / "other.pt2")).variants
    assert other.variants[0].value < 1 and not any("answers to meet" in text for text in told.said)
    assert other.variants[1].drop == pytest.approx(100 * (other.variants[0].value - other.variants[1].value))


def test_a_task_of_ones_own_gets_the_outputs_of_files_as_those_of_its_network(place: Path, tmp_path: Path) -> None:
    found = exported(place, tmp_path, "both", "values", task=f"{place / 'tasks.py'}:both").variants
    outputs, y = answers(found.variants[0].path, place, "values")
    assert found.variants[0].value == pytest.approx(np.abs(outputs[:, 0] - y.numpy()).mean(), abs=1e-6)
    assert (found.metric.name, found.metric.unit) == ("off", "mm")


def test_the_terminal_and_json_speak_the_metric(place: Path, tmp_path: Path) -> None:
    command = [
        "export",
        str(place / "values.pt2"),
        "--int8",
        "--allow-chance",
        "--data",
        f"npz:{place / 'values.npz'}",
        "--out",
        str(tmp_path),
    ]
    told = CliRunner().invoke(app, [*command, "--task", "regression?unit=mmol"])
    assert told.exit_code == 0, told.output
    assert "MAE" in told.output and "mmol" in told.output and "accuracy" not in told.output.lower()
    document = json.loads(CliRunner().invoke(app, [*command, "--force", "--json"]).stdout)["variants"]
    assert document["metric"] == {"name": "MAE", "unit": "", "scale": 1.0, "higher_is_better": False}
    assert document["variants"][0]["drop"] == 0 and document["variants"][0]["value"] > 0
    assert not {"accuracy", "drop_points"} & set(document["variants"][0])


def test_what_a_file_means_stands_beside_what_this_cpu_makes_of_it(place: Path, tmp_path: Path) -> None:
    command = ["export", str(place / "flags.pt2"), "--data", f"npz:{place / 'flags.npz'}", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, [*command, "--int8"])
    text = " ".join(told.output.split())
    assert told.exit_code == 0 and " exact " in text and "of this CPU:" in text, told.output
    assert "for any CPU, with weights of 7 bits" in text
    assert may_saturate(tmp_path / "flags.int8.onnx") == may_saturate(tmp_path / "flags.dynamic.onnx") == ()
    document = json.loads(CliRunner().invoke(app, [*command, "--int8", "--force", "--json"]).stdout)["variants"]
    assert document["int8_for"] == "any" and document["cpu"] == cpu_in_words()
    fp32, int8, dynamic = (next(row for row in document["variants"] if row["name"] == n) for n in _INTEGERS)
    assert fp32["exact_value"] is fp32["exact_drop"] is None
    for row in (int8, dynamic):
        assert row["exact_drop"] == pytest.approx(100 * (fp32["value"] - row["exact_value"]))
        assert row["exact_value"] == pytest.approx(row["value"], abs=0.02), "7 bits saturate nowhere"


@pytest.mark.parametrize("cpu", ["arm", "vnni"])
def test_weights_keep_8_bits_for_cpus_whose_products_do_not_saturate(cpu: str, place: Path, tmp_path: Path) -> None:
    found = exported(place, tmp_path, "flags", int8_for=cpu, max_drop=100.0).variants
    assert found.int8_for == cpu and may_saturate(tmp_path / "flags.int8.onnx")
    assert all(one.exact_value is not None for one in found.variants if one.name in _INTEGERS[1:])


def test_a_cpu_for_int8_goes_with_int8(place: Path, tmp_path: Path) -> None:
    command = ["export", str(place / "flags.pt2"), "--onnx", "--int8-for", "arm", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 2 and "--int8-for arm: expected --int8 beside it, got none" in told.output


@pytest.mark.parametrize(
    ("name", "data", "asked", "message"),
    [
        ("values", "", {"max_drop": "3 points"}, "--max-drop: expected a bare number or %, as MAE is measured in, got"),
        ("flags", "", {"max_drop": "3 mmol"}, "--max-drop: expected points or %, as mAP is measured in"),
        ("flags", "values", {}, r"expected outputs like the targets, \(batch\), got \(4, 3\) float32"),
        ("both", "values", {}, "outputs: expected one output, the values, got pair.0"),
        ("masks", "wide", {}, "expected outputs of at least 6 classes, as the masks have, got .4, 3, 8, 8."),
        ("both", "values", {"task": "raising"}, "value raised ZeroDivisionError"),
        ("both", "values", {"task": "wrong"}, "outcomes: expected a sequence with one outcome for each of"),
        ("both", "values", {"task": "nan"}, "value: expected a finite number, got nan"),
    ],
)
def test_what_does_not_fit_is_refused(
    place: Path, tmp_path: Path, name: str, data: str, asked: dict, message: str
) -> None:
    if "task" in asked:
        asked = {"task": f"{place / 'tasks.py'}:{asked['task']}"}
    with pytest.raises(InputError, match=message) as caught:
        exported(place, tmp_path / "out", name, data, **asked)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
