"""Networks with a cut vocabulary and other inputs, from compress to the files, on what a device hands over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.data import open_data
from edgeprune.data.capturing import captured
from edgeprune.data.inputs import fed, prepared
from edgeprune.formats.load import load
from edgeprune.formats.save import save_checkpoint
from edgeprune.records import IDENTITY, ModelInfo

N = 60
RNG = np.random.default_rng(0)
KEPT = 3 * np.arange(20)  # of 60 ids
RAW: dict[str, np.ndarray] = {
    "image": RNG.integers(0, 256, (N, 2, 4, 4), np.uint8),
    "table": RNG.normal(3, 2, size=(N, 6)).astype(np.float32),
    "ids": RNG.choice(KEPT, (N, 5)),
    "mask": RNG.integers(0, 2, (N, 5)),
    "age": RNG.normal(50, 9, size=N).astype(np.float32),
}


class Five(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.rows, self.table = nn.Linear(32, 8), nn.Embedding(60, 8), nn.Linear(6, 8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(
        self, image: torch.Tensor, table: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, age: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        rows = (self.rows(ids) * mask[..., None]).mean(1)
        inner = torch.relu(self.image(image.flatten(1)) + self.table(table) + rows + age[:, None])
        return {"scores": self.head(torch.relu(self.inner(inner)))}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not for long: nothing here goes by it."""
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)


def run(*arguments: object, expect: int = 0) -> str:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == expect, found.output
    return " ".join(found.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense network of five inputs, and a slim one with a third of its ids and half of its other features."""
    folder = tmp_path_factory.mktemp("five")
    np.savez(folder / "a.npz", **RAW)
    data = open_data(f"npz:{folder / 'a.npz'}")
    torch.manual_seed(0)
    program = captured(Five().eval(), data)
    save_checkpoint(folder / "net.pt2", program, ModelInfo((), normalization=data.normalization))
    asked = ("--input-features", "ids=used", "--input-features", "0.5", "--unknown-id", "ids=0", "--keep-macs", "0.7")
    quick = ("--finetune-epochs", "0", "--align", "1", "--threads", "1", "--allow-chance")
    place = ("--data", f"npz:{folder / 'a.npz'}", "--out", folder / "run")
    said = run("compress", folder / "net.pt2", *place, *asked, *quick)
    assert "on the ids that are kept" in said
    return folder


def sessions(folder: Path) -> dict[str, onnxruntime.InferenceSession]:
    return {name: onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("full", "slim", "preprocess")}


def wanted(place: Path, raw: dict[str, np.ndarray]) -> np.ndarray:
    """What PyTorch makes of raw inputs as a device has them."""
    model = load(place / "run" / "slim.pt2")
    assert model.info.normalization is not None
    tensors = {name: torch.from_numpy(x / np.float32(255) if x.dtype == np.uint8 else x) for name, x in raw.items()}
    with torch.no_grad():
        inputs = prepared(tensors, model.info.normalization, torch.device("cpu"), torch.float32)
        return fed(model.program.module(), inputs)["scores"].numpy()


def test_the_run_tells_of_ids_and_features(place: Path) -> None:
    record = json.loads((place / "run" / "run.json").read_text())
    [told] = record["vocabularies"]
    assert (told["input"], told["n_ids"], told["n_kept"]) == ("ids", 60, 20)
    kept = json.loads((place / "run" / "plan.json").read_text())
    assert kept["vocabularies"]["ids"]["keep"] == KEPT.tolist()


@pytest.fixture(scope="module", params=["apart", "fold"])
def exported(place: Path, request: pytest.FixtureRequest) -> Path:
    """The files, with the floats scaled beside them or inside; the folder's name says which."""
    out = place / request.param
    data = ("--data", f"npz:{place / 'a.npz'}")
    said = run("export", "--onnx", place / "run" / "slim.pt2", "--out", out, *data, "--preprocess", request.param)
    assert "the files agree with PyTorch on 12 inputs" in said
    return out


def test_every_file_gives_the_same(place: Path, exported: Path) -> None:
    found, fold = sessions(exported), exported.name == "fold"
    given = {**RAW, "ids": RNG.integers(0, 60, (N, 5))}  # also such as the unknown id stands for
    want = wanted(place, given)
    assert np.abs(want).max() > 0.1
    types = {value.name: value.type for value in found["preprocess"].get_inputs()}
    assert types["image"] == ("tensor(uint8)" if fold else "tensor(float)") and types["ids"] == "tensor(int64)"
    handed = given if fold else {**given, "image": given["image"] / np.float32(255)}
    slim = dict(zip(RAW, found["preprocess"].run(None, handed), strict=True))
    assert slim["ids"].max() < 20 and slim["table"].shape[1] < 6
    np.testing.assert_allclose(found["slim"].run(None, slim)[0], want, atol=1e-5)
    if fold:
        np.testing.assert_allclose(found["full"].run(None, given)[0], want, atol=1e-5)


def test_features_json_makes_the_inputs_of_both(place: Path, exported: Path) -> None:
    document = json.loads((exported / "features.json").read_text())
    keep = document["vocabularies"]["ids"]["keep"]
    assert document["vocabularies"]["ids"] == {"size": 60, "keep": KEPT.tolist(), "unknown": 0}
    numbers = np.zeros(60, np.int64)
    numbers[keep] = np.arange(len(keep))
    found, want = sessions(exported), wanted(place, RAW)
    for contract in ("full", "slim"):
        feed = {entry["name"]: by_description(entry, numbers) for entry in document["contracts"][contract]["inputs"]}
        assert list(feed) == list(RAW)
        np.testing.assert_allclose(found[contract].run(None, feed)[0], want, atol=1e-5)


def by_description(entry: dict[str, Any], numbers: np.ndarray) -> np.ndarray:
    """An input made of what a device has, by what features.json says of it alone."""
    x = RAW[entry["name"]]
    if "ids" in entry:
        return numbers[x] if entry["ids"]["numbering"] == "new" else x
    if "features" in entry:
        source = x if entry["features"]["dim"] == 1 else x.reshape(len(x), -1)
        x = source[:, entry["features"]["indices"]]
    if entry.get("scaling") is None:
        return x
    how = entry["scaling"]
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
    mean, std = (np.reshape(how[name], shape) for name in ("mean", "std"))
    made: np.ndarray = ((x * how["byte_scale"] - mean) / std).astype(np.float32)
    return made


def test_data_with_ids_that_were_cut_are_refused(place: Path, tmp_path: Path) -> None:
    program = load(place / "net.pt2").program
    graph = edgeprune.analyze(program, vocabularies=edgeprune.vocabularies(program, {"ids": KEPT.tolist()}))
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None), graph)
    save_checkpoint(tmp_path / "slim.pt2", slim, ModelInfo((), normalization=IDENTITY))
    np.savez(tmp_path / "b.npz", **{**RAW, "ids": RAW["ids"] + 1})
    for asked in ((), ("--int8",)):
        given = ("--data", f"npz:{tmp_path / 'b.npz'}", "--out", tmp_path / "out")
        said = run("export", "--onnx", tmp_path / "slim.pt2", *given, *asked, expect=2)
        assert "expected ids of ids that the network keeps, got 1 and 19 more in the train split" in said


# -- smaller numbers and other formats --------------------------------------------------------------------------------


def test_int8_and_ort_are_calibrated_and_run_on_all_inputs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--preprocess", "fold", "--batch", "3")
    monkeypatch.setattr("edgeprune.commands.variants._SECONDS", 0.01)
    monkeypatch.setattr("edgeprune.measure.exports._SECONDS", 0.01)
    command = ("export", "--onnx", place / "run" / "slim.pt2", "--int8", "--ort", "--trust-recorded")
    said = run(*command, "--max-drop", "10", "--data", f"npz:{place / 'a.npz'}", "--out", tmp_path, *asked)
    assert "--dense names it" not in said  # the run's own is found, and what is to be answered is what it answers
    want = wanted(place, RAW)
    for name, share in (("slim.ort", 1e-6), ("slim.int8.onnx", 0.1)):
        session, preprocess = (onnxruntime.InferenceSession(tmp_path / file) for file in (name, "preprocess.onnx"))
        types = {value.name: value.type for value in session.get_inputs()}
        assert types["ids"] == types["mask"] == "tensor(int64)"
        answers = []
        for start in range(0, N, 3):
            feed = preprocess.run(None, {one: x[start : start + 3] for one, x in RAW.items()})
            answers.append(session.run(None, dict(zip(RAW, feed, strict=True)))[0])
        off = np.square(np.concatenate(answers) - want).mean() / np.square(want).mean()
        assert off < share
    nodes = onnx.load(tmp_path / "slim.int8.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) > 3
