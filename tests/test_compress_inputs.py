"""`train` and `compress` of networks with several inputs, from the data to the run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.preparing import Job, prepare
from edgeprune.formats.load import load
from edgeprune.graph.specs import input_specs
from edgeprune.progress import Silent
from edgeprune.pruning.proof import prove_on_data
from edgeprune.requests import CompressRequest

MODELS = Path(__file__).parents[1] / "models"
QUICK = ("--keep-macs", "0.5", "--finetune-epochs", "1", "--align", "1", "--threads", "1")
N, VOCABULARY, LENGTH = 240, 40, 12
TASK = """
import torch
from types import SimpleNamespace

class Score:
    metric = SimpleNamespace(name="hinge", unit="", scale=1.0, higher_is_better=False)
    def loss(self, outputs, targets):
        return torch.relu(1 - outputs.gather(1, targets[:, None])).mean()
    def outcomes(self, outputs, targets):
        return torch.relu(1 - outputs.gather(1, targets[:, None]))[:, 0]
    def value(self, outcomes):
        return float(sum(outcomes) / len(outcomes))

def score():
    return Score()
"""


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not for long: nothing here goes by it."""
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)


def words(**more: Any) -> dict[str, Any]:
    """Sentences of three kinds, each with words of its own among others; what follows the end is padding."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    own = 10 + 10 * y[:, None] + rng.integers(0, 10, (N, LENGTH))
    ids = np.where(rng.random((N, LENGTH)) < 0.5, own, rng.integers(0, VOCABULARY, (N, LENGTH)))
    mask = (np.arange(LENGTH) < rng.integers(4, LENGTH + 1, (N, 1))).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "y": y, **more}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "tasks.py").write_text(TASK)
    np.savez(folder / "words.npz", **words())
    plain = words()
    np.savez(folder / "unlabelled.npz", input_ids=plain["input_ids"], attention_mask=plain["attention_mask"])
    np.savez(folder / "beyond.npz", **words(input_ids=plain["input_ids"] + 1))
    np.savez(folder / "floats.npz", **words(input_ids=plain["input_ids"] / 2))
    np.savez(folder / "lacking.npz", input_ids=plain["input_ids"], y=plain["y"])
    np.savez(folder / "more.npz", **words(token_type_ids=plain["attention_mask"]))
    np.savez(folder / "short.npz", **words(attention_mask=plain["attention_mask"][:, :5]))
    np.savez(folder / "x.npz", x=plain["input_ids"], y=plain["y"])
    return folder


def run(*arguments: str, expect: int = 0) -> str:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == expect, found.output
    return " ".join(found.output.split())


ARCH = f"{MODELS / 'tasks.py'}:reader?vocabulary={VOCABULARY}"


@pytest.fixture(scope="module")
def reader(place: Path) -> Path:
    """A reader of sentences that was trained on them."""
    data, out = ("--data", f"npz:{place / 'words.npz'}"), str(place / "reader.pt")
    run("train", "--arch", ARCH, *data, "--epochs", "12", "--lr", "0.02", "--threads", "1", "--out", out)
    return Path(out)


def compress(place: Path, data: str, *arguments: str, expect: int = 0) -> str:
    given = ("--data", f"npz:{place / data}.npz", "--out", str(place / "run"), "--force", *QUICK, *arguments)
    return run("compress", str(place / "reader.pt"), *given, expect=expect)


def job_of(model: Path, data: str, **asked: Any) -> Job:
    return prepare(CompressRequest(str(model), data, keep_macs=0.5, finetune_epochs=0, align=1, **asked), Silent())


def test_a_text_is_read_in_fewer_operations(place: Path, reader: Path) -> None:
    model = load(reader)
    assert [(spec.name, spec.dtype) for spec in input_specs(model.program)] == [
        ("input_ids", torch.int64), ("attention_mask", torch.int64),
    ]  # fmt: skip
    assert model.info.input_shape == () and model.info.normalization.inputs == ()
    job = job_of(reader, f"npz:{place / 'words.npz'}", out=str(place / "none"), criterion="activation")
    found = job.strategy.search(job.step, job.budgets)
    [slim] = found.networks
    assert slim.macs <= 0.5 * found.dense.macs and found.dense.val_value > 0.8 and slim.proof_error < 1e-5
    assert {spec.name for spec in input_specs(slim.program)} == {"input_ids", "attention_mask"}


def test_real_ids_prove_the_cut_and_score_the_units(place: Path, reader: Path) -> None:
    job = job_of(reader, f"npz:{place / 'words.npz'}", out=str(place / "none"), reconstruct=False)
    trainer = job.step.trainer.inner
    inputs = trainer.some_inputs()
    assert {name: (x.dtype, tuple(x.shape)) for name, x in inputs.items()} == {
        "input_ids": (torch.int64, (4, LENGTH)), "attention_mask": (torch.int64, (4, LENGTH)),
    }  # fmt: skip
    [slim] = job.strategy.search(job.step, job.budgets).networks
    assert prove_on_data(job.step.dense.program, slim.program, slim.plan, inputs) < 1e-5


def test_labels_and_tasks_are_as_free_as_with_one_input(place: Path, reader: Path) -> None:
    job = job_of(reader, f"npz:{place / 'unlabelled.npz'}", out=str(place / "none"))
    assert "--task match, as the targets are" in job.assumed
    found = job.strategy.search(job.step, job.budgets)
    assert found.dense.val_value == 1 and 0 < found.networks[0].val_value < 1
    job = job_of(reader, f"npz:{place / 'words.npz'}", out=str(place / "none"), task=f"{place / 'tasks.py'}:score")
    [slim] = job.strategy.search(job.step, job.budgets).networks
    assert job.step.metric.name == "hinge" and slim.val_value > 0


def test_weights_alone_are_taken_with_inputs_that_are_stated(place: Path, reader: Path) -> None:
    weights = place / "weights.pt"
    torch.save(dict(load(reader).program.state_dict), weights)
    stated = ["--input", "input_ids=L:int64", "--input", "attention_mask=L:int64"]
    assert "MACs" in run("inspect", str(weights), "--arch", ARCH, *stated)
    job = job_of(weights, f"npz:{place / 'words.npz'}", out=str(place / "none"), arch=ARCH)
    assert [spec.shape for spec in input_specs(job.model.program)] == [(None, LENGTH)] * 2, "as the data have them"
    lacking = run("inspect", str(weights), "--arch", ARCH, "--input", "attention_mask=12:int64", expect=2)
    assert "expected inputs input_ids, attention_mask as the network takes them, got attention_mask" in lacking


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (
            "beyond",
            "train, input input_ids: expected numbers from 0 to 39, as many rows as",
        ),
        ("floats", "input input_ids: expected int64, got float32: whole numbers are given as such"),
        ("lacking", "expected inputs input_ids, attention_mask, got no attention_mask"),
        ("more", "expected inputs input_ids, attention_mask, got also token_type_ids"),
        ("short", "input attention_mask: expected shape (12), got (5)"),
        ("x", "expected inputs input_ids, attention_mask, got no input_ids, attention_mask and also x"),
    ],
)
def test_data_that_do_not_fit_are_one_line(place: Path, reader: Path, data: str, fragment: str) -> None:
    said = compress(place, data, expect=2)
    assert fragment in said and said.startswith("edgeprune: ")
    if data in ("beyond", "floats", "lacking"):
        out = ("--out", str(place / "new.pt"), "--epochs", "1")
        assert run("train", "--arch", ARCH, "--data", f"npz:{place / data}.npz", *out, expect=2).startswith(
            "edgeprune: "
        )


def test_an_image_and_a_table_are_seen_in_half_the_operations(tmp_path: Path) -> None:
    """The example of docs/TASKS.md, with fewer digits and epochs, to the file on a device."""
    import onnxruntime
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = (15 * digits.images[:600]).astype(np.uint8)[:, None]
    table = np.hstack([digits.images[:600].sum(1), digits.images[:600].sum(2)]).astype(np.float32)
    np.savez(tmp_path / "two.npz", image=image, table=table, y=digits.target[:600])
    data, arch = ("--data", f"npz:{tmp_path / 'two.npz'}"), f"{MODELS / 'tasks.py'}:gathering?width=8"
    train = ("--epochs", "8", "--lr", "0.01", "--threads", "1", "--out", str(tmp_path / "two.pt"))
    run("train", "--arch", arch, *data, *train)
    given = (
        *data,
        "--out",
        str(tmp_path / "run"),
        *QUICK,
        "--finetune-epochs",
        "3",
        "--max-drop",
        "30",
        "--input-features",
        "off",
    )
    run("compress", str(tmp_path / "two.pt"), *given)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert 0.5 < record["slim"]["val_accuracy"] >= record["dense"]["val_accuracy"] - 0.3
    out = tmp_path / "device"
    run("export", "--onnx", str(tmp_path / "run" / "slim.pt2"), *data, "--preprocess", "fold", "--out", str(out))
    whole = out / "full.onnx"  # where columns of the table went, slim.onnx takes the others alone
    session = onnxruntime.InferenceSession(whole if whole.exists() else out / "slim.onnx")
    assert [value.type for value in session.get_inputs()] == ["tensor(uint8)", "tensor(float)"]
    scores = session.run(None, {"image": image, "table": table})[0]
    assert (scores.argmax(1) == digits.target[:600]).mean() > 0.5


def test_inputs_are_scaled_each_as_asked_from_training_to_the_device(tmp_path: Path) -> None:
    import onnxruntime
    from sklearn.datasets import load_digits

    digits = load_digits()
    image = (15 * digits.images[:300]).astype(np.uint8)[:, None]
    table = np.hstack([digits.images[:300].sum(1), digits.images[:300].sum(2)]).astype(np.float32)
    np.savez(tmp_path / "two.npz", image=image, table=table, y=digits.target[:300])
    data, arch = ("--data", f"npz:{tmp_path / 'two.npz'}"), f"{MODELS / 'tasks.py'}:gathering?width=4"
    asked = ("--normalize", "image:mean=0.3;std=0.4", "--normalize", "table:mean=30;std=25")
    model = tmp_path / "two.pt"
    run("train", "--arch", arch, *data, *asked, "--epochs", "1", "--threads", "1", "--out", str(model))
    recorded = load(model).info.normalization.inputs
    assert [(name, own.mean, own.std) for name, own in recorded] == [
        ("image", (0.3,), (0.4,)),
        ("table", (30.0,), (25.0,)),
    ]
    weights = tmp_path / "weights.pt"
    torch.save(dict(load(model).program.state_dict), weights)
    given = ("--arch", arch, *data, *QUICK, "--allow-chance", "--max-drop", "100", "--input-features", "0.6")
    told = run("compress", str(weights), *given, *asked[2:], "--out", str(tmp_path / "run"))
    assert "assumed --normalize image:none (nothing was asked of it" in told
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    found = {
        one["input"]: (one["shape"], one["features"]["size"], len(one["features"]["keep"])) for one in record["inputs"]
    }
    assert record["features"] is None and found == {"image": ([1, 8, 8], 1, 1), "table": ([16], 16, 9)}
    assert len(record["inputs"][1]["weights"]) == 9 and max(record["inputs"][1]["weights"]) == 1
    assert record["steps"][-1]["n_features"] == 10, "0.6 of 17, of both"
    assert "input features of image │ 1 │ 1" in told and "input features of table │ 16 │ 9" in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Input features of table kept: 9 of 16" in page and "10 of 17 input features" in page
    ids = [one for one in re.findall(r' id="([^"]*)"', page) if f"#{one}" in page]
    assert len(ids) == len(set(ids)) > 0
    run("export", "--onnx", str(tmp_path / "run" / "slim.pt2"), *data, *asked)
    taken = {"image": image.astype(np.float32) / 255, "table": table}
    sessions = [onnxruntime.InferenceSession(tmp_path / "run" / name) for name in ("preprocess.onnx", "slim.onnx")]
    made = sessions[0].run(None, taken)
    got = sessions[1].run(None, {one.name: x for one, x in zip(sessions[1].get_inputs(), made, strict=True)})[0]
    scaled = ((taken["image"] - 0.3) / 0.4, (table - 30) / 25)
    with torch.no_grad():
        want = load(tmp_path / "run" / "slim.pt2").program.module()(
            *(torch.from_numpy(x.astype(np.float32)) for x in scaled)
        )
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4)
