"""`compress --int8`: the run folder gets int8 too, judged, finetuned where it must be, and the record says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.compress import compress
from edgeprune.commands.int8run import asked_int8, check_quantizes, material_of, write_int8_files
from edgeprune.commands.variants import Int8
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import EdgepruneError, InputError, ParityError
from edgeprune.export import ort
from edgeprune.export.exact import meaning
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import ModelInfo
from edgeprune.report.html import render
from edgeprune.requests import CompressRequest
from edgeprune.results import RunRecord
from edgeprune.runrecord import run_from_json, to_json
from edgeprune.tasks.registry import open_task
from tests.uneven import uneven_network

MODELS = Path(__file__).parent.parent / "models"
PLAIN = {"input_features": "off", "threads": 1, "reconstruct": False}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.commands.variants._SECONDS", 0.01)
    monkeypatch.setattr("edgeprune.commands.int8tuning._LR", 3e-3)  # for the few steps that a test takes


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven_network(tmp_path_factory.mktemp("uneven"))


class Stopped(BaseException):
    """As Ctrl-C; what code of others raises is told as its fault, and tests count as such."""


def asked(model: Path, out: Path, **other: Any) -> CompressRequest:
    layers = {"layer_ratios": ("6=0.75",), "leave": ("0", "3"), "keep_macs": 0.95, "finetune_epochs": 8}
    return CompressRequest(str(model), out=str(out), **{"data": "digits", "int8": True, **PLAIN, **layers, **other})


@pytest.fixture(scope="module")
def made(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunRecord]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeprune.commands.variants._SECONDS", 0.01)
        patch.setattr("edgeprune.commands.int8tuning._LR", 3e-3)
        return compress(asked(uneven, tmp_path_factory.mktemp("made") / "run"), Silent())


def accuracy(file: Path, normalization: Any) -> float:
    x, y = next(batches(open_data("digits").val, 10_000))
    return float((ort.run(ort.session(file), normalize(x, normalization).numpy()).argmax(1) == y.numpy()).mean())


def test_the_folder_has_int8_that_was_finetuned_where_it_lost_too_much(made: tuple[Path, RunRecord]) -> None:
    folder, record = made
    names = {path.name for path in folder.iterdir()}
    assert {"slim.pt2", "slim.onnx", "slim.int8.onnx", "slim.int8-finetuned.onnx", "features.json"} <= names
    table = record.variants
    assert table is not None and table.shipped is not None
    rows = {row.name: row for row in table.variants}
    assert all((folder / row.path).stat().st_size == row.size_bytes for row in table.variants)
    normalization = load(folder / "slim.pt2").info.normalization
    for name in ("fp32", "int8", "int8-finetuned"):
        assert accuracy(folder / rows[name].path, normalization) == rows[name].value
    note = next(note for note in table.notes if note.startswith("int8-finetuned: 8 epochs of all layers"))
    lost, left = (float(note.split(word)[0].split()[-2]) for word in (" lost before", " after"))
    assert lost > 1 and left < lost / 2
    kinds = {tensor.data_type for tensor in onnx.load(folder / "slim.int8-finetuned.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert record.slim.macs < record.dense.macs and record.asked["int8"] is True


def test_it_is_recorded_and_reported(made: tuple[Path, RunRecord]) -> None:
    folder, record = made
    text = (folder / "run.json").read_text()
    again = run_from_json(text)
    assert to_json(again) == text and again.variants == record.variants
    table = json.loads(text)["variants"]
    assert {"accuracy", "drop_points", "exact_accuracy"} <= set(table["variants"][0])
    page = (folder / "report.html").read_text()
    assert "slim.int8-finetuned.onnx" in page and "% won back" in page and render(again).count("slim.int8.onnx") == 1
    with pytest.raises(InputError, match="run.json: variants: int8_for: expected one of any, arm, vnni, got"):
        run_from_json(text.replace('"int8_for": "any"', '"int8_for": "mips"'))


def test_a_run_that_is_stopped_in_int8_goes_on_and_comes_to_the_same(
    uneven: Path, made: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    trained: list[int] = []

    class Watched(Silent):
        """Counts the epochs of int8's finetuning, and stops the run after so many of them."""

        def __init__(self, most: int | None = None) -> None:
            self.at, self.most = "", most

        def stage(self, title: str) -> None:
            self.at = title

        def measured(self, figures: Mapping[str, float]) -> None:
            if self.at == "int8: finetune":
                trained.append(1)
                if len(trained) == self.most:
                    raise Stopped

    monkeypatch.setattr("edgeprune.training.state.Pace.is_due", property(lambda _: True))
    with pytest.raises(InputError, match="got Stopped"):
        compress(asked(uneven, out), Watched(2))
    assert not out.exists() and (tmp_path / "run.compressing").exists()

    folder, record = compress(asked(uneven, out, resume=True), Watched())
    assert len(trained) < 2 + 8, "it went on after the epochs that were there"
    assert not (tmp_path / "run.compressing").exists()
    for name in ("slim.pt2", "slim.int8.onnx", "slim.int8-finetuned.onnx"):
        assert (folder / name).read_bytes() == (made[0] / name).read_bytes()
    assert record.variants is not None and made[1].variants is not None
    # Which one is shipped goes by times; what was trained does not.
    tuned = [[note for note in run.variants.notes if "won back" in note] for run in (record, made[1]) if run.variants]
    assert tuned[0] == tuned[1] and len(tuned[0]) == 1


def test_without_labels_int8_is_to_answer_as_the_dense_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    save_program(tmp_path / "net.pt2", capture(net.eval(), torch.zeros(2, 6)), ModelInfo((6,)))
    other = {
        "layer_ratios": (),
        "leave": (),
        "keep_macs": 0.7,
        "int8_for": "arm",
        "finetune_epochs": 0,
        "data": f"npz:{tmp_path / 'x.npz'}",
        "task": "match",
    }
    folder, record = compress(asked(tmp_path / "net.pt2", tmp_path / "run", max_drop="60%", **other), Silent())
    assert record.variants is not None and record.variants.metric.name == "agreement"
    row = next(row for row in record.variants.variants if row.name == "int8")
    # The dense network is what is to be met, on the validation split, by what the file means.
    data = open_data(f"npz:{tmp_path / 'x.npz'}", wanted=None)
    val, _ = next(batches(data.val, 10_000))
    exact = meaning(folder / "slim.int8.onnx", tmp_path / "exact.onnx")
    assert exact is not None
    inputs = normalize(val, load(folder / "slim.pt2").info.normalization)
    want, got = net(inputs).detach().numpy(), ort.run(ort.session(exact), inputs.numpy())
    off = np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
    assert row.exact_value == pytest.approx(1 - off.mean(), abs=1e-4)
    assert to_json(run_from_json((folder / "run.json").read_text())) == (folder / "run.json").read_text()
    assert record.variants.int8_for == "arm" and "int8 is not finetuned (--finetune-epochs 0)" in record.assumed
    tensors = [
        t for t in onnx.load(folder / "slim.int8.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT8
    ]
    assert max(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in tensors) > 64, "8 bits"


# -- bad input -----------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Nothing that could be quantised: a product element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * self.scale


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.fc(x.flatten(1))
        self.seen.add_(scores.mean(0))
        return scores + self.seen


@pytest.mark.parametrize(
    ("net", "reason"),
    [(Scaled, "to quantise, got none"), (Stateful, "--int8: expected a network without a state")],
    ids=["nothing to quantise", "a state"],
)
def test_what_cannot_be_quantised_is_refused_before_the_search(
    net: type[nn.Module], reason: str, tmp_path: Path
) -> None:
    data = open_data("digits")
    info = ModelInfo((1, 8, 8), normalization=data.normalization, classes=tuple(data.classes))
    save_program(tmp_path / "net.pt2", capture(net().eval(), torch.zeros(2, 1, 8, 8)), info)
    int8 = Int8(None, None, 1, allow_chance=True)
    with pytest.raises(InputError, match=reason) as caught:
        check_quantizes(int8, load(tmp_path / "net.pt2"), data, open_task(None, data), Silent())
    assert "--int8" in str(caught.value) and "/tmp" not in str(caught.value)


def test_what_fails_at_the_end_is_told_and_costs_no_network(
    uneven: Path, made: tuple[Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ParityError("slim.dynamic.onnx: expected finite outputs")

    monkeypatch.setattr("edgeprune.commands.variants.write_dynamic", fails)
    data = open_data("digits")
    material = material_of(load(uneven), tmp_path, data, open_task(None, data))
    before = tmp_path.stat().st_ino
    table = write_int8_files(Int8(None, None, 0, allow_chance=False), material, 0.9, Silent())
    assert table.shipped is None and table.ship == "fp32"
    assert [one.reason for one in table.left_out] == ["slim.dynamic.onnx: expected finite outputs"]
    assert (tmp_path / "slim.onnx").exists() and not list(tmp_path.glob("slim.int8*"))
    assert tmp_path.stat().st_ino == before, "the run's folder is held as what it is"
    assert all(path.is_file() for path in tmp_path.iterdir())
    page = render(replace(made[1], variants=table))
    assert "int8 could not be made" in page and "slim.dynamic.onnx: expected finite outputs" in page


@pytest.mark.parametrize("error", [ParityError("preprocess.onnx: largest error 2"), InputError("no opset")])
def test_float_files_that_fail_cost_no_network(
    error: EdgepruneError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("edgeprune.commands.int8run.write_float_files", fails)
    data = open_data("digits")
    material = material_of(load(MODELS / "digits_mlp.pt"), tmp_path, data, open_task(None, data))
    int8 = Int8(None, None, 0, allow_chance=False)
    table = write_int8_files(int8, material, 0.9, Silent())
    assert not table.variants and [one.reason for one in table.left_out] == [str(error)]
    assert not list(tmp_path.iterdir())
    error.__cause__ = OSError("no space left on device")  # which says nothing of the network
    with pytest.raises(type(error)):
        write_int8_files(int8, material, 0.9, Silent())


def test_the_command_line() -> None:
    runner, model = CliRunner(), str(MODELS / "digits_mlp.pt")
    alone = runner.invoke(app, ["compress", model, "--int8-for", "arm"])
    assert alone.exit_code == 2 and "--int8-for arm: expected --int8" in alone.output
    unknown = runner.invoke(app, ["compress", model, "--int8", "--int8-for", "mips"])
    assert unknown.exit_code == 2


def test_int8_goes_by_files_and_by_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--int8: expected to judge files by the data, got --evaluate mine.py:f"):
        asked_int8(CompressRequest("m.pt", int8=True, evaluate="mine.py:f"), 3)
    assert asked_int8(CompressRequest("m.pt"), 3) is None
    own = asked_int8(CompressRequest("m.pt", int8=True, finetune="mine.py:f"), 3)
    assert own is not None and own.finetune_epochs == 0
    widths = asked_int8(CompressRequest("m.pt", int8=True, widths=(0.25, 0.5, 1.0)), 9)
    assert widths is not None and widths.finetune_epochs == 3
    few = asked_int8(CompressRequest("m.pt", int8=True, widths=(0.25, 0.5, 1.0)), 2)
    assert few is not None and few.finetune_epochs == 1
    none = asked_int8(CompressRequest("m.pt", int8=True, widths=(0.25, 0.5, 1.0)), 0)
    assert none is not None and none.finetune_epochs == 0
    save_program(
        tmp_path / "net.pt2",
        capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.zeros(2, 4)),
        ModelInfo((4,)),
    )
    with pytest.raises(InputError, match="--int8: expected data to calibrate on, got none"):
        compress(
            CompressRequest(str(tmp_path / "net.pt2"), out=str(tmp_path / "run"), int8=True, keep_macs=0.5), Silent()
        )
    assert not (tmp_path / "run").exists()
