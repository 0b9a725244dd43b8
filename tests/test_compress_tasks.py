"""`edgeprune compress --task` from a network and its data to the run folder: what is judged, told and refused."""

from __future__ import annotations

import json
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.preparing import Job, prepare
from edgeprune.cost.coverage import Coverage
from edgeprune.cost.device import Device
from edgeprune.formats.load import load
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import IDENTITY, ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.runrecord import run_from_json, to_json
from edgeprune.tasks.budget import MaxDrop

MODELS = Path(__file__).parents[1] / "models"
QUICK = ("--keep-macs", "0.5", "--finetune-epochs", "1", "--input-features", "off", "--align", "1", "--threads", "1")
TASK = """
import numpy as np, torch
from types import SimpleNamespace

class Quantile:
    metric = SimpleNamespace(name="pinball <b>", unit="mm", scale=1.0, higher_is_better=False)
    def loss(self, outputs, targets):
        off = targets - outputs[:, 0]
        return torch.maximum(0.3 * off, -0.7 * off).mean()
    def outcomes(self, outputs, targets):
        off = targets - outputs[:, 0]
        return torch.maximum(0.3 * off, -0.7 * off)
    def value(self, outcomes):
        return float(np.mean(outcomes))

def quantile():
    return Quantile()
"""


class Both(nn.Module):
    """An embedding of six numbers and what is made of it: two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        inner = self.inner(x)
        return {"scores": self.head(inner), "norm": inner.sum(dim=1)}


def fitted(x: np.ndarray, y: np.ndarray) -> nn.Sequential:
    """A network of two layers that has learned `y` `(n,)` of `x` `(n, 6)`."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (module(torch.from_numpy(x))[:, 0] - torch.from_numpy(y)).square().mean().backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not for long: nothing here goes by it."""
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of six numbers, with the networks for them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.py").write_text(TASK)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    y = (3 * np.abs(x[:, 0]) + x[:, 1]).astype(np.float32)
    images = rng.normal(size=(120, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "values.npz", x=x, y=y)
    np.savez(folder / "none.npz", x=x)
    np.savez(folder / "classes.npz", x=x, y=(y > 2).astype(np.int64))
    np.savez(folder / "flags.npz", x=x, y=np.stack([x[:, 0] > 0, x[:, 1] > 0, x[:, 0] > x[:, 1]], axis=1).astype(int))
    np.savez(folder / "masks.npz", x=images, y=(images[:, 0] > 0).astype(np.uint8))
    torch.manual_seed(0)
    nets = {
        "values": fitted(x, y),
        "flags": nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)),
        "masks": nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)),
        "both": Both(),
    }
    for name, net in nets.items():
        shape = (1, 8, 8) if name == "masks" else (6,)
        save_checkpoint(
            folder / f"{name}.pt2",
            capture(net.eval(), torch.randn(2, *shape)),
            ModelInfo(shape, normalization=IDENTITY),
        )
    return folder


def compress(place: Path, model: str, *arguments: str, expect: int = 0) -> str:
    """What `compress` writes to the terminal, or its line of refusal."""
    command = ["compress", str(place / model), "--out", str(place / "run"), "--force", *arguments]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == expect, found.output
    return " ".join(found.output.split())


def prepared(place: Path, model: str, data: str, **asked: object) -> Job:
    """The job of a request, before anything is searched."""
    quick = {"keep_macs": 0.5, "input_features": "off", "align": 1, "threads": 1, "out": str(place / "none")}
    return prepare(CompressRequest(str(place / model), data=data, **{**quick, **asked}), Silent())


def record_of(place: Path) -> dict:
    text = (place / "run" / "run.json").read_text()
    assert to_json(run_from_json(text)) == text, "what is written can be read, to the byte"
    return json.loads(text)


def test_an_error_is_judged_in_its_unit(place):
    data = ("--data", f"npz:{place / 'values.npz'}", "--task", "regression?unit=mmol")
    said = compress(place, "values.pt2", *data, *QUICK, "--max-drop", "2 mmol")
    record = record_of(place)
    assert record["metric"] == {"name": "MAE", "unit": "mmol", "scale": 1.0, "higher_is_better": False}
    found = record["comparison"]
    assert "accuracy" not in record and found["drop"] == pytest.approx(found["slim"] - found["dense"])
    assert found["slim"] == record["slim"]["test_MAE"] and [one["name"] for one in found["beside"]] == ["RMSE", "R2"]
    assert record["slim"]["val_MAE"] - record["dense"]["val_MAE"] <= 2
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert record["data"]["task"] == "regression" and "classes" not in record["data"]
    assert "validation MAE" in said and "mmol" in said
    page = (place / "run" / "report.html").read_text()
    assert "MAE over steps" in page and "mmol" in page
    assert not any(word in text.lower() for word in ("accuracy", "mcnemar") for text in (said, page))
    slim = load(str(place / "run" / "slim.pt2"))
    assert slim.info.task == "regression?unit=mmol"


def test_what_was_recorded_goes_on(place):
    """A network knows its task: integers are then values again, not classes."""
    model, recorded = load(str(place / "values.pt2")), str(place / "again.pt2")
    save_checkpoint(recorded, model.program, replace(model.info, task="regression"))
    x = np.random.default_rng(1).normal(size=(60, 6)).astype(np.float32)
    np.savez(place / "whole.npz", x=x, y=(10 * x[:, 0]).round().astype(int))
    job = prepared(place, "again.pt2", f"npz:{place / 'whole.npz'}", keep_macs=None)
    assert "--task regression (the task that the model was trained for)" in job.assumed
    assert job.task.name == "regression" and job.data.targets.kind == "values"
    assert job.budgets.max_drop == MaxDrop(1.0, "%") and "--max-drop 1%" in job.assumed


def test_a_table_is_halved_within_its_error(place, monkeypatch):
    """The example of docs/TASKS.md, with fewer epochs."""
    from sklearn.datasets import load_diabetes

    load_diabetes(as_frame=True).frame.to_csv(place / "diabetes.csv", index=False)
    data, arch = f"csv:{place / 'diabetes.csv'}?target=target", f"{MODELS / 'tasks.py'}:regressor"
    train = ["train", "--arch", arch, "--data", data, "--epochs", "20", "--out", str(place / "diabetes.pt")]
    assert CliRunner().invoke(app, [*train, "--threads", "1"]).exit_code == 0
    budget = ("--keep-macs", "0.5", "--max-drop", "10%", "--finetune-epochs", "5", "--threads", "1")
    compress(place, "diabetes.pt", "--data", data, "--arch", arch, *budget)
    record = record_of(place)
    assert record["slim"]["val_MAE"] <= 1.1 * record["dense"]["val_MAE"] < 60
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]


def test_without_a_word_the_targets_say_the_task(place):
    said = compress(place, "flags.pt2", "--data", f"npz:{place / 'flags.npz'}", *QUICK, "--allow-chance")
    assert "assumed --task multilabel, as the targets are" in said and "test mAP" in said
    assert record_of(place)["comparison"]["metric"]["name"] == "mAP"
    said = compress(place, "masks.pt2", "--data", f"npz:{place / 'masks.npz'}", *QUICK, "--allow-chance")
    record = record_of(place)
    assert "assumed --task segmentation" in said and 0 < record["slim"]["test_mIoU"] < 1
    assert record["data"]["classes"] == 2 and record["advice"] == []


def test_without_targets_the_dense_network_is_met(place):
    data = ("--data", f"npz:{place / 'none.npz'}")
    said = compress(place, "both.pt2", *data, *QUICK, "--no-distill", "--finetune-epochs", "5")
    record = record_of(place)
    assert "assumed --task match, as the targets are" in said and "agreement" in said
    assert record["dense"]["val_agreement"] == record["dense"]["test_agreement"] == 1
    assert 0.3 < record["slim"]["test_agreement"] < 1
    assert record["slim"]["test_agreement"] == record["comparison"]["slim"]
    job = prepared(place, "both.pt2", f"npz:{place / 'none.npz'}", finetune_epochs=0)
    [untrained] = job.strategy.search(job.step, job.budgets).networks
    assert untrained.val_value < record["slim"]["val_agreement"], "it learns from the dense one"


def test_a_network_that_scores_no_classes_is_matched_on_their_data(place):
    compress(place, "both.pt2", "--data", f"npz:{place / 'classes.npz'}", "--task", "match", *QUICK)
    assert record_of(place)["metric"]["name"] == "agreement"
    refused = compress(place, "both.pt2", "--data", f"npz:{place / 'classes.npz'}", *QUICK, expect=2)
    assert "expected a network with one output (batch, 2)" in refused


def test_a_task_of_ones_own_is_judged_by_its_own_metric(place, monkeypatch):
    data = ("--data", f"npz:{place / 'values.npz'}")
    own = f"{place / 'tasks.py'}:quantile"
    compress(place, "values.pt2", *data, "--task", own, *QUICK, "--max-drop", "5mm")
    record = record_of(place)
    assert record["asked"]["max_drop"] == "5 mm" and record["metric"]["name"] == "pinball <b>"
    assert record["steps"][-1]["val_pinball <b>"] == record["slim"]["val_pinball <b>"] > 0
    page = (place / "run" / "report.html").read_text()
    assert '<b>" over' not in page and "pinball &lt;b&gt;" in page and "pinball <b>" not in page
    (place / "own.pt2").write_bytes((place / "run" / "slim.pt2").read_bytes())
    refused = compress(place, "own.pt2", *data, *QUICK, expect=2)
    assert "expected a task of edgeprune's on record" in refused and "which is code" in refused
    assert prepared(place, "own.pt2", f"npz:{place / 'values.npz'}", trust_recorded=True).step.metric.unit == "mm"


@pytest.mark.parametrize(
    ("model", "data", "arguments", "message"),
    [
        ("values", "values", ("--max-drop", "3 points"), "--max-drop: expected a bare number or %, as MAE is measured"),
        ("values", "values", ("--max-drop", "3 x y\n"), "--max-drop: expected a bare number or %"),
        ("values", "values", ("--task", "classification"), "expected labels y as ints or texts (n,), the classes"),
        ("values", "values", ("--task", "detection"), "task: expected classification, multilabel"),
        ("both", "values", (), "outputs: expected one output, the values, got scores (4, 3) float32 and norm"),
        ("values", "masks", (), "the model expects inputs of shape (6,), got (1, 8, 8)"),
        ("flags", "values", (), "expected outputs like the targets, (batch), got (4, 3) float32"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(place, model, data, arguments, message):
    said = compress(place, f"{model}.pt2", "--data", f"npz:{place / data}.npz", *arguments, *QUICK, expect=2)
    assert message in said


def test_a_task_needs_data(place):
    assert "--task match: expected data to do it on" in compress(place, "both.pt2", "--task", "match", expect=2)


def shown(name: str) -> str:
    """The Python of docs/TASKS.md that makes a file."""
    text = (MODELS.parent / "docs" / "TASKS.md").read_text()
    blocks = [block.partition("    END\n")[0] for block in text.split("    python - <<'END'\n")[1:]]
    return textwrap.dedent(next(block for block in blocks if name in block))


@pytest.mark.slow
def test_sensors_that_tell_nothing_go_whole(place, monkeypatch):
    """The example of docs/TASKS.md, with fewer epochs."""
    monkeypatch.chdir(place)
    exec(compile(shown("sensors.npz"), "sensors", "exec"), {})
    data = ("--data", "npz:sensors.npz", "--threads", "1")
    train = ["train", "--arch", f"{MODELS / 'tasks.py'}:signals", *data, "--epochs", "7", "--batch-size", "32"]
    assert CliRunner().invoke(app, [*train, "--out", "sensors.pt"]).exit_code == 0
    budget = ("--keep-macs", "0.5", "--max-drop", "2", "--finetune-epochs", "3", "--input-features", "7")
    arch = ("--arch", f"{MODELS / 'tasks.py'}:signals")
    compress(place, "sensors.pt", *data, *arch, "--feature-groups", "sensors.json", *budget)
    record = record_of(place)
    groups = {name: set(members) for name, members in record["model"]["feature_groups"]}
    kept = set(record["features"]["keep"])
    assert len(groups) == 6 and all(members <= kept or not members & kept for members in groups.values())
    assert kept == groups["accelerometer"] | groups["gyroscope"] | groups["pressure"]
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert record["slim"]["val_accuracy"] >= record["dense"]["val_accuracy"] - 0.02 > 0.85
    page = (place / "run" / "report.html").read_text()
    assert "accelerometer: 3 of 3" in page and "temperature: 0 of 2" in page


def test_what_is_left_takes_over_without_training_or_labels(place):
    data = ("--data", f"npz:{place / 'none.npz'}", *QUICK, "--finetune-epochs", "0")
    said = compress(place, "both.pt2", *data)
    record = record_of(place)
    assert "✓ ONNX = PyTorch" in said and "once the layers were solved again (240 samples" in said
    assert "once the layers were solved again (240 samples" in (place / "run" / "report.html").read_text()
    found = [step["reconstruction"] for step in record["steps"]]
    assert len(found) == 2 and {layer["layer"] for layer in found[-1]["layers"]} == {"inner.0", "head"}
    assert 0 < found[-1]["after"] < found[-1]["before"] < 1
    assert record["asked"]["reconstruct"]
    job = prepared(place, "both.pt2", f"npz:{place / 'none.npz'}", finetune_epochs=0, reconstruct=False)
    without = job.strategy.search(job.step, job.budgets)
    assert [step.reconstruction for step in without.steps] == [None, None]
    assert record["slim"]["val_agreement"] > without.networks[0].val_value + 0.1


@pytest.mark.slow
def test_a_text_encoder_is_halved_without_labels_or_training(place, monkeypatch):
    """The example of docs/TASKS.md, trained for fewer epochs."""
    monkeypatch.chdir(place)
    exec(compile(shown("topics.npz"), "topics", "exec"), {})
    train = ["train", "--arch", f"{MODELS / 'text.py'}:encoder", "--data", "npz:topics.npz", "--epochs", "3"]
    found = CliRunner().invoke(app, [*train, "--batch-size", "32", "--threads", "1", "--out", "text.pt"])
    assert found.exit_code == 0, found.output
    budget = ("--keep-macs", "0.5", "--max-drop", "1", "--finetune-epochs", "0", "--threads", "1")
    said = compress(place, "text.pt", "--data", "npz:texts.npz", *budget)
    record = record_of(place)
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert record["slim"]["val_agreement"] >= 0.99 and record["slim"]["test_agreement"] > 0.98
    assert "test agreement" in said and "accuracy" not in said
    slim = load(str(place / "run" / "slim.pt2")).program.module()
    arrays = np.load("texts.npz")
    ids, mask = (torch.from_numpy(arrays[name][:8]) for name in ("input_ids", "attention_mask"))
    other = torch.where(mask == 1, ids, 7)
    assert torch.allclose(slim(ids, mask), slim(other, mask), atol=1e-5), "what is masked changes nothing"


def test_a_network_that_keeps_a_state_is_not_reconstructed(place):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return self.two(self.one(x).relu())

    torch.manual_seed(0)
    program = capture(Counting().eval(), torch.randn(2, 6))
    save_checkpoint(place / "state.pt2", program, ModelInfo((6,), normalization=IDENTITY))
    job = prepared(place, "state.pt2", f"npz:{place / 'none.npz'}", finetune_epochs=0)
    assert "--no-reconstruct (the network keeps a state from run to run)" in job.assumed
    [slim] = job.strategy.search(job.step, job.budgets).networks
    assert slim.reconstruction is None


@pytest.mark.slow
def test_a_detector_is_halved_within_its_average_precision(place):
    """The example of docs/TASKS.md, on fewer scenes: its data, its network and its task are one file of the user's."""
    own = str(MODELS / "detector.py")
    data = ("--data", f"{own}:scenes?train=240&val=60&test=40", "--task", f"{own}:detection?resamples=6")
    budget = ("--keep-macs", "0.5", "--max-drop", "10", "--finetune-epochs", "4", "--threads", "1")
    said = compress(place, str(MODELS / "digits_detector.pt"), *data, "--arch", f"{own}:detector", *budget)
    record = record_of(place)
    assert record["metric"]["name"] == "mAP50" and "validation mAP50" in said
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert record["slim"]["val_mAP50"] >= record["dense"]["val_mAP50"] - 0.1 > 0.8
    low, high = record["comparison"]["drop_interval"]
    assert low < high and record["comparison"]["n_samples"] == 40


# -- what is to be done next -------------------------------------------------------------------------------------------

OWN = """
import numpy as np
from torch import nn

def rows(n=60):
    x = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    return x, x[:, 0] - x[:, 1]

def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
"""


def followed(arguments: list[str], *more: str) -> list[str]:
    """Run a command; the arguments of the one that it says to run next."""
    found = CliRunner().invoke(app, [*arguments, *more])
    assert found.exit_code == 0, found.output
    _, _, told = found.stdout.partition("  next    edgeprune ")
    return shlex.split(told.splitlines()[0]) if told else []


def test_what_is_to_be_run_next_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my task.py").write_text(TASK)
    (tmp_path / "my rows.py").write_text(OWN)
    named = ["--data", "my rows.py:rows?n=90", "--task", "my task.py:quantile"]
    trained = ["train", "--arch", "my rows.py:net", *named, "--epochs", "1", "--threads", "1"]
    compress = followed(trained, "--out", "my net.pt")
    assert compress == ["compress", "my net.pt", *named]
    export = followed(compress, *QUICK, "--out", "run")
    assert export == ["export", "--onnx", "run/slim.pt2", *named]
    assert followed(export) == []
    assert (tmp_path / "run/slim.onnx").is_file()


def test_data_and_tasks_of_ones_own_are_named_again_after_profile_and_federate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "own.py").write_text(OWN)
    own = ["--data", "own.py:rows", "--task", "task.py:quantile"]
    federate = ["federate", "--arch", "own.py:net", *own, "--clients", "2", "--per-round", "2", "--rounds", "1"]
    assert followed(federate, "--out", "net.pt", "--threads", "1") == ["compress", "net.pt", *own]
    monkeypatch.setattr("edgeprune.commands.profile.own_device", lambda *_: Device("runtime", "cpu", 1, 1, ()))
    monkeypatch.setattr("edgeprune.commands.profile.coverage", lambda *_: Coverage({"linear": 1.0}, ()))
    profiled = followed(["profile", "net.pt", "--out", "d.json"])
    assert profiled == ["compress", "net.pt", "--device", "d.json", *own]
