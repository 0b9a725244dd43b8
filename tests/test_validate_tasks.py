"""`edgeprune validate` by the task: each metric in its unit, files of every kind, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.validate import validate
from edgeprune.data import batches, open_data
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.onnx import export_onnx
from edgeprune.export.ortformat import OrtFormat
from edgeprune.export.quantize import write_int8
from edgeprune.export.target import Material
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.measure.networkfile import opened
from edgeprune.progress import Silent
from edgeprune.records import Model, ModelInfo, Normalization
from edgeprune.requests import ValidateRequest
from edgeprune.results import ValidateRecord
from edgeprune.tasks.outputs import leaves
from edgeprune.tasks.registry import open_task
from edgeprune.tasks.torchmetric import functional

TASK = """
import torch
from types import SimpleNamespace

class Both:
    metric = SimpleNamespace(name="off", unit="mm", scale=1.0, higher_is_better=False)
    def loss(self, outputs, targets):
        return (outputs["scores"][:, 0] - targets).abs().mean()
    def outcomes(self, outputs, targets):
        assert isinstance(outputs["scores"], torch.Tensor) and isinstance(outputs.pair, (list, tuple))
        return (outputs["scores"][:, 0] - targets).abs()
    def value(self, outcomes):
        return float(sum(outcomes) / len(outcomes)) {}

def both():
    return Both()
def raising():
    task = Both()
    task.outcomes = lambda outputs, targets: 1 / 0
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
SHAPES = {"masks": (1, 8, 8)}
NORMALIZATION = Normalization((0.5,), (2.0,))


class Both(nn.Module):
    """Six numbers in; a dict with a tensor, and two more in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict:
        inner = self.inner(x)
        return {"scores": self.head(inner), "pair": (inner, inner.sum(dim=1))}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "values": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)),
        "flags": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
        "masks": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)),
        "both": Both(),
    }


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not for long: nothing here goes by it."""
    monkeypatch.setattr("edgeprune.measure.latency.N_RESAMPLES", 200)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of each kind; of each network a dense file and one whose weights are a little off, as a smaller one's."""
    folder = tmp_path_factory.mktemp("validate")
    (folder / "tasks.py").write_text(TASK.replace("{}", ""))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    images = rng.normal(size=(60, 1, 8, 8)).astype(np.float32)
    masks = np.digitize(images[:, 0], [-0.5, 0.5]).astype(np.uint8)
    masks[:, 0, 0] = 255
    data = {
        "values": (x, 3 * x[:, 0]),
        "flags": (x, np.stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 0] > x[:, 1]], axis=1).astype(int)),
        "masks": (images, masks),
        "classes": (x, (x[:, 0] > 0).astype(int)),
    }
    for name, (inputs, targets) in data.items():
        np.savez(folder / f"{name}.npz", x=inputs, y=targets)
    np.savez(folder / "none.npz", x=x)
    for name, net in networks().items():
        shape = SHAPES.get(name, (6,))
        info = ModelInfo(shape, normalization=NORMALIZATION)
        for kind in ("dense", "slim"):
            if kind == "slim":
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
            program = capture(net.eval(), torch.randn(2, *shape))
            write_contracts(program, info, folder / name / kind, name=kind)
            save_program(folder / name / f"{kind}.pt2", program, info)
    return folder


def judged(place: Path, name: str, data: str = "", **asked: object) -> ValidateRecord:
    pair = {kind: str(place / name / kind / f"{kind}.onnx") for kind in ("dense", "slim")}
    fields = {**pair, "data": f"npz:{place / (data or name)}.npz", "runs": 10, "allow_chance": True, **asked}
    return validate(ValidateRequest(**fields), Silent())


def test_split(place: Path, name: str) -> tuple[Tensor, Tensor]:
    x, y = next(batches(open_data(f"npz:{place / name}.npz").test, 1000))
    return (x - 0.5) / 2, y


test_split.__test__ = False  # type: ignore[attr-defined]


def answered(place: Path, name: str, kind: str, x: Tensor) -> Tensor:
    from edgeprune.formats.load import load

    with torch.no_grad():
        return load(str(place / name / f"{kind}.pt2")).program.module()(x)


def test_regression_is_told_in_its_unit(place: Path) -> None:
    record = judged(place, "values", task="regression?unit=mmol")
    (x, y), found = test_split(place, "values"), record.comparison
    for kind, value in (("dense", found.dense), ("slim", found.slim)):
        expected = (answered(place, "values", kind, x)[:, 0] - y).abs().mean()
        assert value == pytest.approx(expected.item(), abs=1e-6)
    assert (found.metric.name, found.metric.unit) == ("MAE", "mmol") and [one.name for one in found.beside] == [
        "RMSE",
        "R2",
    ]
    assert (
        found.drop == pytest.approx(found.slim - found.dense)
        and found.drop_interval[0] < found.drop < found.drop_interval[1]
    )
    assert record.accuracy is None and record.agreement is None and record.parity > 0


def test_multilabel_and_segmentation_are_what_torchmetrics_says(place: Path) -> None:
    x, y = test_split(place, "flags")
    record = judged(place, "flags")
    answers = [answered(place, "flags", kind, x) for kind in ("dense", "slim")]
    expected = [functional().multilabel_average_precision(one, y.long(), 3, average="macro").item() for one in answers]
    assert [record.comparison.dense, record.comparison.slim] == pytest.approx(expected, abs=1e-6)
    assert record.agreement == pytest.approx(((answers[0] > 0) == (answers[1] > 0)).double().mean().item())
    x, y = test_split(place, "masks")
    record = judged(place, "masks")
    answers = [answered(place, "masks", kind, x).argmax(1) for kind in ("dense", "slim")]
    expected = [functional().multiclass_jaccard_index(one, y, 3, ignore_index=255).item() for one in answers]
    assert [record.comparison.dense, record.comparison.slim] == pytest.approx(expected, abs=1e-6)
    assert record.agreement == pytest.approx((answers[0] == answers[1]).double().mean().item())


def test_match_goes_by_the_answers_of_the_first(place: Path) -> None:
    record = judged(place, "both", "none")
    found = record.comparison
    assert found.metric.name == "agreement" and found.dense == 1
    x, _ = test_split(place, "values")
    dense, slim = (leaves(answered(place, "both", kind, x)) for kind in ("dense", "slim"))
    errors = [
        (a.reshape(len(x), -1) - b.reshape(len(x), -1)).norm(dim=1) / a.reshape(len(x), -1).norm(dim=1)
        for (_, a), (_, b) in zip(dense, slim, strict=True)
    ]
    assert found.slim == pytest.approx(1 - torch.stack(errors).mean().item(), rel=1e-4)
    swapped = judged(place, "both", "none", slim=str(place / "both" / "dense" / "dense.onnx"))
    assert swapped.comparison.slim == 1 and swapped.parity == 0


def test_a_task_of_ones_own_gets_outputs_as_its_network_gives_them(place: Path) -> None:
    """By name and in lists, as tensors: a file itself knows names alone."""
    record = judged(place, "both", "values", task=f"{place / 'tasks.py'}:both")
    (x, y) = test_split(place, "values")
    expected = (answered(place, "both", "slim", x)["scores"][:, 0] - y).abs().mean().item()
    assert record.comparison.slim == pytest.approx(expected, abs=1e-6) and record.comparison.metric.unit == "mm"


@pytest.mark.parametrize("suffix", ["pt2", "ort", "int8.onnx"])
def test_each_kind_of_file_is_judged(place: Path, tmp_path: Path, suffix: str) -> None:
    """As its ONNX file is, as far as it is the same network."""
    plain = judged(place, "values")
    slim = place / "values" / "slim" / "slim.onnx"
    path = place / "values" / f"slim.{suffix}"
    if suffix == "ort":
        (tmp_path / "slim.onnx").write_bytes(slim.read_bytes())
        program = capture(networks()["values"].eval(), torch.randn(2, 6))
        info = ModelInfo((6,), normalization=NORMALIZATION)
        OrtFormat(None).write(Material(Model(program, info, "", "slim"), info, tmp_path, "slim"), Silent())
        path = tmp_path / "slim.ort"
    elif suffix == "int8.onnx":
        path = tmp_path / "slim.int8.onnx"
        write_int8(slim, path, ((test_split(place, "values")[0]).numpy()), max_drop=1.0)
    record = judged(place, "values", slim=str(path))
    close = {"rel": 0.05} if suffix == "int8.onnx" else {"rel": 1e-5}
    assert record.comparison.slim == pytest.approx(plain.comparison.slim, **close)
    assert record.comparison.dense == plain.comparison.dense
    assert record.slim_bytes == (slim if suffix == "pt2" else path).stat().st_size or suffix == "pt2"


def test_a_recorded_task_goes_on_and_code_is_not_run_unasked(place: Path, tmp_path: Path) -> None:
    program = capture(networks()["values"].eval(), torch.randn(2, 6))
    save_program(tmp_path / "own.pt2", program, ModelInfo((6,), task="regression?unit=mmol"))
    record = judged(place, "values", slim=str(tmp_path / "own.pt2"))
    assert record.comparison.metric.unit == "mmol"
    write_contracts(program, ModelInfo((6,), task="regression?unit=kg"), tmp_path, name="own")
    assert judged(place, "values", slim=str(tmp_path / "own.onnx")).comparison.metric.unit == "kg"
    code = f"{place / 'tasks.py'}:both"
    save_program(tmp_path / "own.pt2", program, ModelInfo((6,), task=code))
    with pytest.raises(InputError, match="which is code: it runs only if --task names it, or with --trust-recorded"):
        judged(place, "values", slim=str(tmp_path / "own.pt2"))
    write_contracts(program, ModelInfo((6,), task=code), tmp_path, name="own")
    assert b"tasks.py" not in (tmp_path / "own.onnx").read_bytes()


def test_the_terminal_and_json_speak_the_metric(place: Path) -> None:
    pair = [str(place / "values" / kind / f"{kind}.onnx") for kind in ("dense", "slim")]
    command = [
        "validate",
        "--allow-chance",
        *pair,
        "--data",
        f"npz:{place / 'values.npz'}",
        "--task",
        "regression?unit=mmol",
        "--runs",
        "10",
    ]
    told = CliRunner().invoke(app, [*command, "--max-drop", "0.001 mmol"])
    assert told.exit_code == 1, told.output
    assert "test MAE" in told.output and "mmol" in told.output and "test R2" in told.output
    assert "budget missed: MAE drop: at most 0.001 mmol asked, got" in told.output.replace("\n", " ")
    assert not any(word in told.output.lower() for word in ("accuracy", "mcnemar"))
    held = CliRunner().invoke(app, [*command, "--max-drop", "90%", "--json"])
    assert held.exit_code == 0, held.output
    document = json.loads(held.stdout)
    assert document["comparison"]["metric"]["name"] == "MAE" and "accuracy" not in document
    missed = judged(place, "values", max_drop="0.01%")
    assert missed.failures[0].startswith("MAE drop: at most 0.01% of the dense network's, 0.000")


@pytest.mark.parametrize(
    ("name", "data", "asked", "message"),
    [
        ("values", "", {"max_drop": "3 points"}, "--max-drop: expected a bare number or %, as MAE is measured in, got"),
        ("values", "", {"max_drop": "200%"}, "--max-drop: expected at most 100 % of what the dense network has"),
        ("flags", "", {"max_drop": "3 mmol"}, "--max-drop: expected points or %, as mAP is measured in, got 'mmol'"),
        ("flags", "", {"max_drop": 101.0}, r"--max-drop: expected mAP points in \[0, 100\]"),
        (
            "flags",
            "values",
            {},
            r"dense.onnx: data .*expected outputs like the targets, \(batch\), got \(1, 3\) float32",
        ),
        ("values", "flags", {}, r"dense.onnx: data .*expected outputs like the targets, \(batch, 3\), got \(1, 1\)"),
        ("both", "values", {}, "dense.onnx: outputs: expected one output, the values, got scores .* and pair.0"),
        ("both", "classes", {}, r"expected one output \(batch, 2\) as the data has classes, got output_0"),
        ("values", "masks", {}, r"expected an input \(batch, 1, 8, 8\), got \(batch, 6\)"),
        ("values", "none", {"task": "regression"}, "task regression: expected floats as targets, got none"),
        ("values", "", {"task": "detection"}, "task: expected classification, multilabel"),
        ("both", "values", {"task": "raising"}, r"outcomes raised ZeroDivisionError.*tasks.py:\d+"),
        ("both", "values", {"task": "wrong"}, "outcomes: expected a sequence with one outcome for each of"),
        ("both", "values", {"task": "nan"}, "value: expected a finite number, got nan"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(place: Path, name: str, data: str, asked: dict, message: str) -> None:
    if asked.get("task") in ("raising", "wrong", "nan"):
        asked = {"task": f"{place / 'tasks.py'}:{asked['task']}"}
    with pytest.raises(InputError, match=message) as caught:
        judged(place, name, data, **asked)
    assert "\n" not in str(caught.value)


def test_masks_beyond_the_classes_are_named(place: Path, tmp_path: Path) -> None:
    with np.load(place / "masks.npz") as arrays:
        np.savez(tmp_path / "wide.npz", x=arrays["x"], y=np.where(arrays["y"] == 2, 7, arrays["y"]))
    with pytest.raises(InputError, match="expected outputs of at least 8 classes, as the masks have, got .1, 3, 8, 8."):
        judged(place, "masks", data=str(tmp_path / "wide"))


def test_a_malformed_statement_is_refused(place: Path, tmp_path: Path) -> None:
    for entry, text, message in (
        ("edgeprune.outputs", '{"a": "nothing"}', "expected its outputs logits in objects and lists, got"),
        ("edgeprune.outputs", "[", "edgeprune.outputs: expected its outputs"),
        ("edgeprune.task", "3", "edgeprune.task: expected the name of a task, got '3'"),
    ):
        proto = onnx.load(place / "values" / "slim" / "slim.onnx")
        proto.metadata_props.add(key=entry, value=text)
        onnx.save(proto, tmp_path / "bad.onnx")
        with pytest.raises(InputError, match=message):
            judged(place, "values", slim=str(tmp_path / "bad.onnx"))


@pytest.mark.parametrize("content", [None, b"", b"noise" * 100, "cut"])
def test_a_damaged_ort_file_is_refused_in_one_line(place: Path, tmp_path: Path, content: bytes | str | None) -> None:
    slim = tmp_path / "net.ort"
    if content == "cut":
        (tmp_path / "slim.onnx").write_bytes((place / "values" / "slim" / "slim.onnx").read_bytes())
        info = ModelInfo((6,), normalization=NORMALIZATION)
        program = capture(networks()["values"].eval(), torch.randn(2, 6))
        OrtFormat(None).write(Material(Model(program, info, "", "slim"), info, tmp_path, "slim"), Silent())
        slim.write_bytes((tmp_path / "slim.ort").read_bytes()[:-200])
    elif content is not None:
        slim.write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="net.ort: (expected an .ort file|onnxruntime cannot load it)") as caught:
        judged(place, "values", slim=str(slim))
    assert "\n" not in str(caught.value)


def test_mutated_ort_files_end_in_one_line(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Some are still networks; nothing else than one line is said of the others, be they no text or no tensors."""
    (tmp_path / "slim.onnx").write_bytes((place / "values" / "slim" / "slim.onnx").read_bytes())
    info = ModelInfo((6,), normalization=NORMALIZATION)
    program = capture(networks()["values"].eval(), torch.randn(2, 6))
    OrtFormat(None).write(Material(Model(program, info, "", "slim"), info, tmp_path, "slim"), Silent())
    data = open_data(f"npz:{place / 'values.npz'}")
    task, content, refused = open_task(None, data), (tmp_path / "slim.ort").read_bytes(), 0
    rng = np.random.default_rng(0)
    for _ in range(150):
        mutant = bytearray(content)
        for at in rng.integers(0, len(mutant), rng.choice([1, 2, 8])):
            mutant[at] = rng.integers(256)
        (tmp_path / "mutant.ort").write_bytes(mutant)
        try:
            opened(tmp_path / "mutant.ort", data, task)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 150 and capfd.readouterr() == ("", "")


def test_a_file_says_how_its_outputs_belong_together(place: Path, tmp_path: Path) -> None:
    """Bare tensors need no word; the dict of a single one does."""
    stated = {entry.key: entry.value for entry in onnx.load(place / "both" / "dense" / "dense.onnx").metadata_props}
    assert json.loads(stated["edgeprune.outputs"]) == {"scores": "output_0", "pair": ["output_1", "output_2"]}
    plain = onnx.load(place / "values" / "dense" / "dense.onnx")
    assert "edgeprune.outputs" not in {entry.key for entry in plain.metadata_props}

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x * 2}

    export_onnx(capture(Alone(), torch.randn(2, 6)), tmp_path / "alone.onnx")
    stated = {entry.key: entry.value for entry in onnx.load(tmp_path / "alone.onnx").metadata_props}
    assert stated["edgeprune.outputs"] == '{"out": "logits"}'
