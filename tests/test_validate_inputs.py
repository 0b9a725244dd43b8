"""`edgeprune validate` of networks with several inputs, or ids: files of every kind, raw and scaled, and bad ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.commands.validate import validate
from edgeprune.data import batches, open_data
from edgeprune.data.capturing import captured
from edgeprune.data.inputs import fed, prepared
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.ortformat import write_ort
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program
from edgeprune.records import DataSource, ModelInfo, Normalization
from edgeprune.requests import ValidateRequest
from edgeprune.results import ValidateRecord

N = 90
RNG = np.random.default_rng(0)
IDS = 3 * RNG.integers(0, 20, (N, 5))  # a third of 60
X = {
    "image": RNG.integers(0, 256, (N, 1, 4, 4), np.uint8),
    "ids": IDS,
    "mask": RNG.integers(0, 2, (N, 5)),
    "age": RNG.normal(50, 9, size=N).astype(np.float32),
}


class Four(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.image, self.rows = nn.Linear(16, 8), nn.Embedding(60, 8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(
        self, image: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, age: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        rows = (self.rows(ids) * mask[..., None]).mean(1)
        inner = torch.relu(self.image(image.flatten(1)) + rows + age[:, None])
        return {"value": self.head(torch.relu(self.inner(inner)))}


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(60, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.rows(ids)).mean(1))


def slim_of(program: Program) -> Program:
    """Half of the MACs, and the ids of the data alone."""
    vocabularies = edgeprune.vocabularies(program, {"ids": sorted(set(IDS.ravel().tolist()))})
    graph = edgeprune.analyze(program, vocabularies=vocabularies)
    return edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=0.5, align=1), graph)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs, ONNX files of both contracts, scaled and raw, and .ort files of a dense and a slim network."""
    folder = tmp_path_factory.mktemp("validated")
    np.savez(folder / "a.npz", **X, y=X["age"] * 2 + IDS.sum(1))
    np.savez(folder / "ids.npz", ids=IDS, y=np.arange(N) % 3)
    np.savez(folder / "lacking.npz", image=X["image"], ids=IDS, y=X["age"])
    np.savez(folder / "wide.npz", **{**X, "image": np.zeros((N, 1, 4, 5), np.uint8)}, y=X["age"])
    np.savez(folder / "floats.npz", **{**X, "ids": IDS / 2}, y=X["age"])
    np.savez(folder / "x.npz", x=np.zeros((N, 4), np.float32), y=X["age"])
    for name, net in (("a", Four(1)), ("ids", Ids())):
        data = open_data(f"npz:{folder / name}.npz")
        torch.manual_seed(0)
        dense = captured(type(net)(*([1] if name == "a" else [])).eval(), data)
        info = ModelInfo((), normalization=data.normalization, classes=data.classes)
        for kind, program in (("dense", dense), ("slim", slim_of(dense))):
            own = info if name == "a" else replace(info, input_shape=(5,))
            save_program(folder / f"{name}-{kind}.pt2", program, own)
            write_contracts(program, own, folder / name / kind, name=kind, inputs=data.inputs)
            write_ort(folder / name / kind / f"{kind}.onnx", folder / name / kind / f"{kind}.ort")
            if name == "a":
                write_contracts(program, own, folder / "fold" / kind, name=kind, inputs=data.inputs, preprocess="fold")
    return folder


def validated(place: Path, dense: str, slim: str, data: str = "a", **asked: object) -> ValidateRecord:
    fields = {"allow_chance": True, "runs": 5, **asked}
    return validate(ValidateRequest(str(place / dense), str(place / slim), f"npz:{place / data}.npz", **fields))


def answers(place: Path, name: str, kind: str, data: DataSource) -> np.ndarray:
    """What PyTorch gives on the test split."""
    program = edgeprune.formats.load.load_model(place / f"{name}-{kind}.pt2").program
    x, _ = next(batches(data.test, N))
    inputs = prepared(x, data.normalization, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        found = fed(program.module(), inputs)
    return (found["value"] if isinstance(found, dict) else found).numpy()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("dense", "slim"),
    [
        ("a-dense.pt2", "a-slim.pt2"),
        ("a/dense/dense.onnx", "a/slim/slim.onnx"),
        ("a/dense/dense.ort", "a/slim/slim.ort"),
        ("a/dense/dense.onnx", "a/slim/full.onnx"),
        ("fold/dense/dense.onnx", "fold/slim/slim.onnx"),
        ("a-dense.pt2", "fold/slim/full.onnx"),
    ],
)
def test_every_kind_of_file_takes_all_inputs(place: Path, dense: str, slim: str) -> None:
    data = open_data(f"npz:{place / 'a.npz'}")
    record = validated(place, dense, slim)
    want, got = answers(place, "a", "dense", data), answers(place, "a", "slim", data)
    _, y = next(batches(data.test, N))
    found = record.compared
    assert found.metric.name == "MAE"
    assert found.dense == pytest.approx(float(np.abs(want[:, 0] - y.numpy()).mean()), rel=1e-4)
    assert found.slim == pytest.approx(float(np.abs(got[:, 0] - y.numpy()).mean()), rel=1e-4)
    assert record.parity == pytest.approx(float(np.abs(want - got).max()), rel=1e-3)
    assert record.latency.n_runs >= 5 and record.latency.batch_size == 1


@pytest.mark.parametrize(
    ("dense", "slim"),
    [("ids-dense.pt2", "ids-slim.pt2"), ("ids/dense/dense.onnx", "ids/slim/slim.onnx"),
     ("ids/dense/dense.ort", "ids/slim/full.onnx")],
)  # fmt: skip
def test_ids_alone(place: Path, dense: str, slim: str) -> None:
    data = open_data(f"npz:{place / 'ids.npz'}")
    record = validated(place, dense, slim, "ids", batch_size=3)
    want = answers(place, "ids", "dense", data)
    _, y = next(batches(data.test, N))
    assert record.accuracy is not None
    assert record.accuracy.dense == pytest.approx(float((want.argmax(1) == y.numpy()).mean()))
    assert record.parity == pytest.approx(float(np.abs(want - answers(place, "ids", "slim", data)).max()), rel=1e-3)
    assert record.latency.batch_size == 3


def test_what_a_file_does_not_say_is_told(place: Path, tmp_path: Path) -> None:
    model = onnx.load(place / "a" / "dense" / "dense.onnx")
    helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "silent.onnx")
    found = CliRunner().invoke(
        app, ["validate", str(tmp_path / "silent.onnx"), str(place / "a" / "slim" / "full.onnx"), "--data",
              f"npz:{place / 'a.npz'}", "--runs", "10", "--json"],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "silent.onnx: states no normalisation; taken: image mean 0." in " ".join(found.stderr.split())
    record = validated(place, "a/dense/dense.onnx", "a/slim/full.onnx")
    said = json.loads(found.stdout)
    assert record.parity == pytest.approx(said["parity"], rel=1e-4)


def test_what_a_file_does_not_say_can_be_said_of_each_input(place: Path, tmp_path: Path) -> None:
    model = onnx.load(place / "a" / "dense" / "dense.onnx")
    helper.set_model_props(model, {})
    onnx.save(model, tmp_path / "silent.onnx")
    slim, data = str(place / "a" / "slim" / "full.onnx"), open_data(f"npz:{place / 'a.npz'}")
    record = validated(tmp_path, "silent.onnx", slim, str(place / "a"), normalize="age:mean=40;std=8")
    own = dict(data.normalization.inputs) | {"age": Normalization((40.0,), (8.0,))}
    scaled = replace(data, normalization=replace(data.normalization, inputs=tuple(own.items())))
    want = np.abs(answers(place, "a", "dense", scaled) - answers(place, "a", "slim", data)).max()
    assert record.parity == pytest.approx(float(want), rel=1e-3)
    with pytest.raises(InputError, match="--normalize mask: expected an input of floats, got int64"):
        validated(place, "a/dense/dense.onnx", "a/slim/full.onnx", normalize="mask:none")
    with pytest.raises(InputError, match="as an ONNX file names no weights; got weights"):
        validated(place, "a/dense/dense.onnx", "a/slim/full.onnx", normalize="age:weights")


@pytest.mark.parametrize(
    ("dense", "slim", "data", "message"),
    [
        (
            "a/dense/dense.onnx",
            "a/slim/slim.onnx",
            "lacking",
            "expected inputs image, ids, mask, age, got no mask, age",
        ),
        ("a/dense/dense.onnx", "a/slim/slim.onnx", "wide", "input image: expected shape (1, 4, 4), got (1, 4, 5)"),
        ("a/dense/dense.onnx", "a/slim/slim.onnx", "floats", "input ids: expected int64, got float32"),
        (
            "a/dense/dense.onnx",
            "a/slim/slim.onnx",
            "x",
            "expected inputs image, ids, mask, age, got no image, ids, mask, age and also x",
        ),
        ("a/dense/dense.onnx", "ids/slim/full.onnx", "a", "expected inputs image, ids, mask, age as in data"),
        ("a/dense/dense.onnx", "alone/slim.onnx", "a", "expected a preprocess.onnx beside it, as it takes only kept"),
        ("a/dense/dense.onnx", "other/slim.onnx", "a", "preprocess.onnx: expected outputs image tensor(float)"),
    ],
)
def test_what_does_not_fit_is_one_line(place: Path, dense: str, slim: str, data: str, message: str) -> None:
    for folder in ("alone", "other"):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "slim.onnx").write_bytes((place / "a" / "slim" / "slim.onnx").read_bytes())
    (place / "other" / "preprocess.onnx").write_bytes((place / "ids" / "slim" / "preprocess.onnx").read_bytes())
    asked = ["validate", str(place / dense), str(place / slim), "--data", f"npz:{place / data}.npz", "--runs", "10"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.split())
    assert len([line for line in found.stderr.splitlines() if line.startswith("edgeprune: ")]) == 1


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("data", "files"),
    [
        ("cut-a", ("a-dense.pt2", "a-slim.pt2")),
        ("cut-a", ("a/dense/dense.onnx", "a/slim/slim.onnx")),
        ("cut-a", ("a/dense/dense.ort", "a/slim/slim.ort")),
        ("cut-a", ("a/dense/dense.onnx", "fold/slim/full.onnx")),
        ("cut-ids", ("ids-dense.pt2", "ids-slim.pt2")),
        ("cut-ids", ("ids/dense/dense.onnx", "ids/slim/slim.onnx")),
    ],
)
def test_an_id_that_was_cut_is_named(place: Path, data: str, files: tuple[str, str]) -> None:
    ids = IDS.copy()
    ids[:, 0] = 4
    more = {**X, "ids": ids, "y": X["age"]} if data == "cut-a" else {"ids": ids, "y": np.arange(N) % 3}
    np.savez(place / f"{data}.npz", **more)
    said = f"{Path(files[1]).name}: input ids: expected ids of the 20 of 60 that the network keeps, got 4 in the test"
    with pytest.raises(InputError, match=said):
        validated(place, *files, data)
