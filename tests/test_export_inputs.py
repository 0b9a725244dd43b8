"""`export` of a network with several inputs: one file, run in onnxruntime on what a device hands over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.data import open_data
from edgeprune.data.capturing import captured
from edgeprune.formats.save import save_checkpoint
from edgeprune.records import ModelInfo
from tests.test_web import array_of, manifest_of, unpacked

N = 40
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (N, 1, 4, 4), np.uint8)
TABLE, AGE = RNG.normal(3, 2, size=(N, 3)).astype(np.float32), RNG.normal(50, 9, size=N).astype(np.float32)
IDS = RNG.integers(0, 20, (N, 5))


class Four(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.rows = nn.Linear(16, 6), nn.Embedding(20, 6)
        self.table, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, image: torch.Tensor, table: torch.Tensor, ids: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
        inner = self.image(image.flatten(1)) + self.table(table) + self.rows(ids).mean(1)
        return self.head(torch.relu(inner + age[:, None]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    np.savez(folder / "a.npz", image=IMAGE, table=TABLE, ids=IDS, age=AGE, y=np.arange(N) % 2)
    data = open_data(f"npz:{folder / 'a.npz'}")
    torch.manual_seed(0)
    program = captured(Four().eval(), data)
    save_checkpoint(folder / "net.pt2", program, ModelInfo((), normalization=data.normalization, classes=data.classes))
    return folder


def export(place: Path, *arguments: str, expect: int = 0) -> str:
    data = ("--data", f"npz:{place / 'a.npz'}") if "--no-data" not in arguments else ()
    given = [argument for argument in arguments if argument != "--no-data"]
    command = ["export", "--onnx", str(place / "net.pt2"), "--out", str(place / "out"), "--force", *data, *given]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == expect, found.output
    return " ".join(found.output.split())


def wanted(place: Path) -> np.ndarray:
    """What PyTorch makes of all samples."""
    data = open_data(f"npz:{place / 'a.npz'}")
    torch.manual_seed(0)
    scaled = {name: x.astype(np.float32) / (255 if name == "image" else 1) for name, x in RAW.items() if name != "ids"}
    for name, own in data.normalization.inputs:
        shape = (1, -1) + (1,) * (scaled[name].ndim - 2) if scaled[name].ndim > 1 else (-1,)
        scaled[name] = (scaled[name] - np.reshape(own.mean, shape)) / np.reshape(own.std, shape)
    inputs = {name: torch.from_numpy(x.astype(np.float32)) for name, x in scaled.items()}
    with torch.no_grad():
        return Four()(inputs["image"], inputs["table"], torch.from_numpy(IDS), inputs["age"]).numpy()


RAW = {"image": IMAGE, "table": TABLE, "age": AGE, "ids": IDS}


def test_a_folded_file_takes_what_a_device_has(place: Path) -> None:
    assert "the files agree with PyTorch on 8 inputs" in export(place, "--preprocess", "fold")
    session = onnxruntime.InferenceSession(place / "out" / "net.onnx")
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("image", "tensor(uint8)"), ("table", "tensor(float)"), ("ids", "tensor(int64)"), ("age", "tensor(float)"),
    ]  # fmt: skip
    np.testing.assert_allclose(session.run(None, RAW)[0], wanted(place), atol=1e-5)
    entries = json.loads((place / "out" / "features.json").read_text())["contracts"]["full"]["inputs"]
    assert [entry.get("values") for entry in entries] == ["raw", "raw", None, "raw"]
    assert entries[0]["unit"] == "a byte, 0 to 255" and entries[1]["unit"] == "a value as in the training data"


@pytest.mark.parametrize("arguments", [(), ("--no-data",), ("--batch", "1")])
def test_beside_each_input_stands_how_it_is_scaled(place: Path, arguments: tuple[str, ...]) -> None:
    export(place, *arguments)
    document = json.loads((place / "out" / "features.json").read_text())
    feed = {}
    for entry in document["contracts"]["full"]["inputs"]:
        x, how = RAW[entry["name"]], entry.get("scaling")
        if how is not None:
            shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,)
            scale = 1 / 255 if entry["name"] == "image" else 1.0
            assert how["byte_scale"] == (scale if "--no-data" not in arguments else 1.0)
            mean, std = (np.reshape(how[name], shape) for name in ("mean", "std"))
            x = ((x * scale - mean) / std).astype(np.float32)
        feed[entry["name"]] = x[:1]
    session = onnxruntime.InferenceSession(place / "out" / "net.onnx")
    np.testing.assert_allclose(session.run(None, feed)[0], wanted(place)[:1], atol=1e-5)
    assert "net.onnx takes scaled values" in document["note"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--normalize", "mean=1;std=2"), "expected none or data for inputs by name (image, table, ids, age)"),
        (("--normalize", "none", "--preprocess", "fold", "--no-data"), "so there is nothing to fold"),
        (
            ("--normalize", "colour:none"),
            "colour: expected an input of the network (image, table, ids, age), got colour",
        ),
        (("--normalize", "ids:none"), "--normalize ids: expected an input of floats, got int64"),
        (("--normalize", "table:mean=1,2;std=1"), "--normalize table: expected 1 or 3 means and stds"),
        (("--normalize", "age:mean=1,2;std=1"), "--normalize age: expected 1 means and stds"),
        (("--normalize", "table:data", "--no-data"), "--normalize table: expected data to measure mean and std on"),
    ],
)
def test_what_takes_one_input_says_so(place: Path, arguments: tuple[str, ...], fragment: str) -> None:
    assert fragment in export(place, *arguments, expect=2)


@pytest.mark.parametrize("fold", [(), ("--preprocess", "fold")])
def test_one_input_is_scaled_as_asked_and_the_others_as_recorded(place: Path, fold: tuple[str, ...]) -> None:
    asked = ("--normalize", "table:mean=1,2,3;std=2,4,8", "--normalize", "image:none")
    told = export(place, *asked, *fold)
    assert "assumed --normalize table:mean=1,2,3;std=2,4,8 image:none for" in told
    recorded = dict(open_data(f"npz:{place / 'a.npz'}").normalization.inputs)["age"]
    document = json.loads((place / "out" / "features.json").read_text())
    entries = {entry["name"]: entry for entry in document["contracts"]["full"]["inputs"]}
    scaling = {
        name: entry["scaling"] and (entry["scaling"]["mean"], entry["scaling"]["std"])
        for name, entry in entries.items()
        if name != "ids"
    }
    stated = {
        "image": ([0.0], [1.0]), "table": ([1, 2, 3], [2, 4, 8]), "age": (list(recorded.mean), list(recorded.std)),
    }  # fmt: skip
    assert scaling == (dict.fromkeys(stated) if fold else stated)
    feed = dict(RAW)
    if not fold:
        feed |= {"image": IMAGE.astype(np.float32) / 255, "table": (TABLE - [1, 2, 3]) / np.array([2, 4, 8])}
        feed["age"] = (AGE - recorded.mean[0]) / recorded.std[0]
        feed = {name: x.astype(np.float32) if name != "ids" else x for name, x in feed.items()}
    torch.manual_seed(0)
    with torch.no_grad():
        table = torch.from_numpy(((TABLE - [1, 2, 3]) / np.array([2, 4, 8])).astype(np.float32))
        age = torch.from_numpy(((AGE - recorded.mean[0]) / recorded.std[0]).astype(np.float32))
        want = Four()(torch.from_numpy(IMAGE).float() / 255, table, torch.from_numpy(IDS), age).numpy()
    session = onnxruntime.InferenceSession(place / "out" / "net.onnx")
    np.testing.assert_allclose(session.run(None, feed)[0], want, atol=1e-5)


@pytest.mark.parametrize("arguments", [("--preprocess", "fold"), ("--no-data",)])
def test_the_page_has_all_inputs(place: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Real samples as a device has them, or drawn ones; the dense network's beside them as it takes them."""
    package = unpacked(tmp_path)
    options = ("--dense", str(place / "net.pt2"), "--web-runtime", str(package), *arguments)
    export(place, "--web", "--c-header", *options)
    header = (place / "out" / "edgeprune_features.h").read_text()
    assert "EDGEPRUNE_INPUT0_NAME" in header and 'EDGEPRUNE_INPUT3_NAME "age"' in header
    manifest = manifest_of(place / "out" / "web")
    told = {name: {one["name"]: one for one in network["inputs"]} for name, network in manifest["networks"].items()}
    is_folded = "fold" in arguments
    assert {name: one["type"] for name, one in told["slim"].items()} == {
        "image": "uint8" if is_folded else "float32", "table": "float32", "ids": "int64", "age": "float32",
    }  # fmt: skip
    assert {name: one["shape"] for name, one in told["dense"].items()} == {
        "image": [1, 1, 4, 4], "table": [1, 3], "ids": [1, 5], "age": [1],
    }  # fmt: skip
    image, ids = (array_of(place / "out" / "web", told["slim"][name], 16)[:, 0] for name in ("image", "ids"))
    if is_folded:
        data = open_data(f"npz:{place / 'a.npz'}")
        real = [data.test[i][0] for i in range(len(data.test))]
        np.testing.assert_array_equal(ids[: len(real)], [x["ids"].numpy() for x in real][:16])
        np.testing.assert_array_equal(image[: len(real)], [np.rint(255 * x["image"].numpy()) for x in real][:16])
    assert len(np.unique(ids)) > 5 and len(np.unique(image)) > 5
    dense, slim = (
        array_of(place / "out" / "web", manifest["networks"][name]["outputs"][0], 16) for name in ("dense", "slim")
    )
    np.testing.assert_allclose(slim, dense, atol=1e-5)
    assert manifest["task"]["kind"] == "classes"
