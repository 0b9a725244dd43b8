"""The full and the slim contract, preprocessing and the list of features: real files that agree in onnxruntime."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune.export.contracts as contracts
from edgeprune.errors import InputError, ParityError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.front import Preprocessing, numbering_model
from edgeprune.export.metadata import metadata_of, normalization_in
from edgeprune.graph.capture import Program, capture
from edgeprune.records import ModelInfo, Normalization
from edgeprune.results import ExportedFile

PIXELS = (3, 10, 11, 30, 40, 63)
IMAGE = ModelInfo((1, 8, 8), classes=("a", "b", "c"), normalization=Normalization((4.9,), (6.0,)))
COLOURS = ModelInfo((3, 6, 6), normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
TABLE = ModelInfo(
    (4,),
    normalization=Normalization((1.0, 2.0, 3.0, 4.0), (0.5, 1.5, 2.5, 3.5)),
    feature_names=("width", "height", "depth", "mass"),
)


class Gathering(nn.Module):
    """Gathers `keep` along dim 1, of the flattened input where `flat`, then runs `tail`."""

    def __init__(self, keep: tuple[int, ...], tail: nn.Module, flat: bool) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor(keep))
        self.tail, self.flat = tail, flat

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flat else x
        return self.tail(torch.index_select(x, 1, self.edgeprune_keep_x))


def pixels() -> Program:
    tail = nn.Sequential(nn.Linear(len(PIXELS), 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return capture(Gathering(PIXELS, tail, flat=True), torch.randn(2, 1, 8, 8))


def colours() -> Program:
    tail = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    return capture(Gathering((0, 2), tail, flat=False), torch.randn(2, 3, 6, 6))


def columns() -> Program:
    return capture(Gathering((1, 3), nn.Linear(2, 3), flat=False), torch.randn(2, 4))


def raw_of(info: ModelInfo, n: int = 300) -> np.ndarray:
    return np.random.default_rng(3).uniform(0, 16, (n, *info.input_shape)).astype(np.float32)


def run(path: Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def normalized(raw: np.ndarray, info: ModelInfo) -> np.ndarray:
    shape = (1, -1, *(1,) * (raw.ndim - 2))
    mean, std = (np.float32(values).reshape(shape) for values in (info.normalization.mean, info.normalization.std))
    return (raw - mean) / std


class Exported(NamedTuple):
    """One export and what it was made from."""

    name: str
    program: Program
    info: ModelInfo
    raw: np.ndarray
    folder: Path
    files: list[ExportedFile]


@pytest.fixture(
    scope="module", params=[(pixels, IMAGE), (colours, COLOURS), (columns, TABLE)], ids=lambda p: p[0].__name__
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    build, info = request.param
    program, raw, folder = build(), raw_of(info), tmp_path_factory.mktemp(build.__name__)
    return Exported(build.__name__, program, info, raw, folder, write_contracts(program, info, folder, raw))


def test_all_contracts_agree_on_raw_inputs(exported: Exported) -> None:
    _, program, info, raw, folder, files = exported
    assert [Path(file.path).name for file in files] == ["full.onnx", "slim.onnx", "preprocess.onnx", "features.json"]
    assert all(Path(file.path).stat().st_size == file.size_bytes for file in files)
    assert [file.parity is not None and file.parity <= 1e-4 for file in files] == [True, True, True, False]
    assert sorted(os.listdir(folder)) == sorted(Path(file.path).name for file in files)

    features = run(folder / "preprocess.onnx", raw)
    assert features.shape == (len(raw), *{"pixels": (6,), "colours": (2, 6, 6), "columns": (2,)}[exported.name])
    chained, full = run(folder / "slim.onnx", features), run(folder / "full.onnx", normalized(raw, info))
    with torch.no_grad():
        want = program.module()(torch.from_numpy(normalized(raw, info))).numpy()
    np.testing.assert_allclose(chained, want, atol=1e-5)
    np.testing.assert_allclose(full, want, atol=1e-5)
    for n in (1, 7):
        np.testing.assert_allclose(run(folder / "slim.onnx", features[:n]), want[:n], atol=1e-5)
        np.testing.assert_array_equal(run(folder / "preprocess.onnx", raw[:n]), features[:n])


def test_firmware_gets_the_same_from_features_json(exported: Exported) -> None:
    """What the firmware does with the file gives what preprocess.onnx gives."""
    document = json.loads((exported.folder / "features.json").read_text())
    assert document["format"] == "edgeprune-features/2"
    assert document["input_shape"] == list(exported.info.input_shape)
    raw = exported.raw[:5]
    source = raw if document["dim"] == 1 else raw.reshape(len(raw), -1)
    kept = source[:, document["indices"]]
    shape = (1, -1, *(1,) * (kept.ndim - 2))
    mean, std = (np.float32(document["scaling"][name]).reshape(shape) for name in ("mean", "std"))
    np.testing.assert_allclose((kept - mean) / std, run(exported.folder / "preprocess.onnx", raw), atol=1e-6)


def fed(entry: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """What firmware does by the document: the scaling beside the only input, by its own formula."""
    [taken] = entry["inputs"]
    along = (1, -1, *(1,) * (values.ndim - 2))
    mean, std = (np.float32(taken["scaling"][name]).reshape(along) for name in ("mean", "std"))
    formula = {"x": values, "byte_scale": np.float32(taken["scaling"]["byte_scale"]), "mean": mean, "std": std}
    return np.float32(eval(taken["scaling"]["formula"], {"__builtins__": {}}, formula))


def test_every_contract_says_how_it_is_fed(exported: Exported) -> None:
    """Each file, fed by its own entry alone, gives what PyTorch gives; raw values give something else."""
    document = json.loads((exported.folder / "features.json").read_text())
    assert document["classes"] == list(exported.info.classes)
    raw = exported.raw[:5]
    source = raw if document["dim"] == 1 else raw.reshape(len(raw), -1)
    with torch.no_grad():
        want = exported.program.module()(torch.from_numpy(normalized(raw, exported.info))).numpy()
    given = {"full": raw, "slim": source[:, document["indices"]]}
    assert list(document["contracts"]) == ["full", "slim", "preprocess"]
    for contract, values in given.items():
        entry = document["contracts"][contract]
        [taken], [output] = entry["inputs"], entry["outputs"]
        assert (taken["name"], taken["type"], taken["values"]) == ("input", "float32", "normalised")
        assert taken["shape"] == ["batch", *values.shape[1:]]
        assert (output["name"], output["shape"]) == ("logits", ["batch", want.shape[1]])
        np.testing.assert_allclose(run(exported.folder / entry["file"], fed(entry, values)), want, atol=1e-5)
        assert np.abs(run(exported.folder / entry["file"], values) - want).max() > 0.1
    assert document["contracts"]["preprocess"]["inputs"][0]["values"] == "raw"
    assert document["note"].startswith("full.onnx and slim.onnx take scaled values: unscaled ones give wrong answers")


def test_network_without_normalisation_takes_what_the_device_has(tmp_path: Path) -> None:
    write_contracts(columns(), replace(TABLE, normalization=None), tmp_path)
    document = json.loads((tmp_path / "features.json").read_text())
    [taken] = document["contracts"]["slim"]["inputs"]
    assert (taken["values"], taken["unit"]) == ("raw", "a value as in the training data")
    assert document["note"] == ""
    np.testing.assert_array_equal(fed(document["contracts"]["slim"], np.ones((2, 2))), np.ones((2, 2)))


def test_images_of_bytes_say_what_a_byte_stands_for(tmp_path: Path) -> None:
    """Without normalisation too, and where all inputs stay."""
    program = capture(nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), torch.randn(2, 3, 6, 6))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 6))
    raw = pixels.astype(np.float32) / 255
    for info in (COLOURS, replace(COLOURS, normalization=None)):
        write_contracts(program, info, tmp_path, raw, byte_scale=1 / 255)
        document = json.loads((tmp_path / "features.json").read_text())
        entry = document["contracts"]["full"]
        assert entry["inputs"][0]["scaling"]["x"] == "a byte, 0 to 255"
        with torch.no_grad():
            want = program.module()(torch.from_numpy(raw if info.normalization is None else normalized(raw, info)))
        np.testing.assert_allclose(run(tmp_path / entry["file"], fed(entry, pixels)), want.numpy(), atol=1e-5)
        assert document["indices"] == [0, 1, 2] and document["names"] == ["x[0]", "x[1]", "x[2]"]


class Sensors(nn.Module):
    """Gathers sensors of `(batch, steps, sensors)`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor((0, 2)))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.index_select(x, 2, self.edgeprune_keep_x).flatten(1))


@pytest.mark.parametrize("preprocess", ["apart", "fold"])
@pytest.mark.parametrize("is_image", [True, False], ids=["image", "sequence"])
def test_bytes_are_taken_alike_of_images_and_sequences(tmp_path: Path, is_image: bool, preprocess: Any) -> None:
    steps = ModelInfo((5, 3), normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), dim=2))
    program, info = (colours(), COLOURS) if is_image else (capture(Sensors(), torch.randn(2, 5, 3)), steps)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *info.input_shape)).astype(np.uint8)
    raw = pixels.astype(np.float32) / 255
    write_contracts(program, info, tmp_path, raw, preprocess=preprocess, byte_scale=1 / 255)
    document = json.loads((tmp_path / "features.json").read_text())
    takes = {name: entry["inputs"][0] for name, entry in document["contracts"].items()}
    folds = preprocess == "fold"
    types = ("uint8", "uint8", "uint8") if folds else ("float32", "float32", "float32")
    assert tuple(takes[name]["type"] for name in ("preprocess", "slim", "full")) == types
    assert takes["preprocess"]["unit"] == ("a byte, 0 to 255" if folds else "a byte times 0.00392156863")
    session = onnxruntime.InferenceSession(tmp_path / "preprocess.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == ("tensor(uint8)" if folds else "tensor(float)")


def test_sizes_that_are_free_are_free_in_every_file(tmp_path: Path) -> None:
    tail = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    program = capture(Gathering((0, 2), tail, flat=False), torch.randn(2, 3, 6, 6), dynamic_size=True)
    write_contracts(program, COLOURS, tmp_path)
    document = json.loads((tmp_path / "features.json").read_text())
    shapes = {name: entry["inputs"][0]["shape"] for name, entry in document["contracts"].items()}
    full = ["batch", 3, "height", "width"]
    assert shapes == {"full": full, "slim": ["batch", 2, "height", "width"], "preprocess": full}
    raw = np.random.default_rng(0).random((2, 3, 9, 7), dtype=np.float32)
    with torch.no_grad():
        want = program.module()(torch.from_numpy(normalized(raw, COLOURS))).numpy()
    chained = run(tmp_path / "slim.onnx", run(tmp_path / "preprocess.onnx", raw))
    np.testing.assert_allclose(chained, want, atol=1e-5)


def test_features_are_named(exported: Exported) -> None:
    document = json.loads((exported.folder / "features.json").read_text())
    assert (document["size"], document["names"]) == {
        "columns": (4, ["height", "mass"]),
        "pixels": (64, ["x[0,0,3]", "x[0,1,2]", "x[0,1,3]", "x[0,3,6]", "x[0,5,0]", "x[0,7,7]"]),
        "colours": (3, ["x[0]", "x[2]"]),
    }[exported.name]


def test_files_say_what_they_are(exported: Exported) -> None:
    for contract in ("full", "slim", "preprocess"):
        proto = onnx.load(exported.folder / f"{contract}.onnx")
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        assert metadata["edgeprune.contract"] == contract
        taken = exported.raw if contract != "slim" else run(exported.folder / "preprocess.onnx", exported.raw)
        assert json.loads(metadata["edgeprune.input_shape"]) == list(taken.shape[1:])
        assert json.loads(metadata.get("edgeprune.classes", "[]")) == list(exported.info.classes)
        stated = normalization_in(metadata, contract)
        assert contract == "slim" or stated == exported.info.normalization
        assert stated is not None and {len(stated.mean), len(stated.std)} <= {1, taken.shape[1]}
    slim = {node.op_type for node in onnx.load(exported.folder / "slim.onnx").graph.node}
    full = {node.op_type for node in onnx.load(exported.folder / "full.onnx").graph.node}
    assert "Gather" in full and not slim & {"Gather", "Sub", "Div"}


def test_flattened_colour_image_scales_each_feature_by_its_channel(tmp_path: Path) -> None:
    keep = (0, 35, 36, 107)  # channels 0, 0, 1, 2
    program = capture(Gathering(keep, nn.Linear(4, 2), flat=True), torch.randn(2, 3, 6, 6))
    write_contracts(program, COLOURS, tmp_path)
    scaling = json.loads((tmp_path / "features.json").read_text())["scaling"]
    assert scaling == {"mean": [0.5, 0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.3, 0.4]}


def test_network_that_keeps_all_inputs(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.randn(2, 1, 8, 8))
    raw = raw_of(IMAGE)
    files = write_contracts(program, IMAGE, tmp_path / "scaled", raw)
    assert [Path(file.path).name for file in files] == ["slim.onnx", "preprocess.onnx", "features.json"]
    scaled = run(tmp_path / "scaled" / "preprocess.onnx", raw)
    np.testing.assert_array_equal(scaled, normalized(raw, IMAGE))
    files = write_contracts(program, replace(IMAGE, normalization=None), tmp_path / "plain", raw)
    assert [Path(file.path).name for file in files] == ["slim.onnx", "features.json"]
    np.testing.assert_allclose(
        run(tmp_path / "plain" / "slim.onnx", scaled), run(tmp_path / "scaled" / "slim.onnx", scaled), atol=1e-6
    )


class CalledFeatures(nn.Module):
    """Its inputs have the names that what is made of inputs has in files."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_features", torch.tensor([0, 3]))
        self.fc = nn.Linear(6, 3)

    def forward(self, features: Tensor, new_ids: Tensor) -> Tensor:
        return self.fc(torch.cat([torch.index_select(features, 1, self.edgeprune_keep_features), new_ids], 1))


def test_inputs_may_be_called_as_what_is_made_of_them(tmp_path: Path) -> None:
    program = capture(CalledFeatures(), (torch.randn(2, 5), torch.randn(2, 4)))
    write_contracts(program, ModelInfo((5,)), tmp_path)
    made, network = (onnxruntime.InferenceSession(tmp_path / name) for name in ("preprocess.onnx", "slim.onnx"))
    assert [one.name for one in made.get_inputs()] == ["features", "new_ids"]
    raw = {"features": np.eye(2, 5, dtype=np.float32), "new_ids": np.ones((2, 4), np.float32)}
    taken = made.run(None, raw)
    got = network.run(None, {one.name: x for one, x in zip(network.get_inputs(), taken, strict=True)})[0]
    with torch.no_grad():
        wanted = program.frozen_module()(*map(torch.from_numpy, raw.values())).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    stated = json.loads((tmp_path / "features.json").read_text(encoding="utf-8"))["contracts"]["preprocess"]
    for told, values in (("inputs", made.get_inputs()), ("outputs", made.get_outputs())):
        assert [one["name"] for one in stated[told]] == [one.name for one in values]


@pytest.mark.parametrize("name", ["features", "new_ids", "ids"])
def test_ids_of_any_name_are_numbered_anew(name: str) -> None:
    ids = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", 3])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, ["batch", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", [name], ["y"])], "g", [ids], [out])
    network = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    model = numbering_model(network, np.array([0, 2, 1]))
    onnx.checker.check_model(model, full_check=True)
    [got] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {name: np.array([[0, 1, 2]])})
    assert got.tolist() == [[0, 2, 1]]


def test_without_normalisation_the_features_are_only_gathered(tmp_path: Path) -> None:
    raw = raw_of(IMAGE, 4)
    write_contracts(pixels(), replace(IMAGE, normalization=None), tmp_path, raw)
    np.testing.assert_array_equal(run(tmp_path / "preprocess.onnx", raw), raw.reshape(4, -1)[:, list(PIXELS)])
    assert json.loads((tmp_path / "features.json").read_text())["scaling"] == {"mean": [0.0] * 6, "std": [1.0] * 6}


def test_program_with_several_inputs_gets_one_file(tmp_path: Path) -> None:
    program = capture(nn.Bilinear(3, 4, 2), (torch.randn(2, 3), torch.randn(2, 4)))
    files = write_contracts(program, ModelInfo((3,), classes=("a", "b")), tmp_path)
    assert [Path(file.path).name for file in files] == ["slim.onnx", "features.json"]
    document = json.loads((tmp_path / "features.json").read_text())
    assert document["classes"] == ["a", "b"] and "indices" not in document
    names = [(value["name"], value["shape"]) for value in document["contracts"]["full"]["inputs"]]
    assert names == [("input1", ["batch", 3]), ("input2", ["batch", 4])]


@pytest.mark.parametrize("existing", [True, False])
def test_disagreement_leaves_nothing(existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slim program is given features in the wrong places; each file alone is right."""
    other = capture(nn.Linear(4, 2), torch.randn(2, 4))
    folder = tmp_path / "out"
    if existing:
        folder.mkdir()
        (folder / "slim.onnx").write_bytes(b"from an earlier export")
    info = ModelInfo((6,), normalization=Normalization((0.0,), (1.0,)))
    program = capture(Gathering((0, 1, 2, 5), nn.Linear(4, 2), flat=False), torch.randn(2, 6))
    monkeypatch.setattr(contracts, "slim_contract", lambda _: other)
    with pytest.raises(ParityError, match="preprocess.onnx then slim.onnx against PyTorch"):
        write_contracts(program, info, folder)
    assert os.listdir(tmp_path) == (["out"] if existing else [])
    if existing:
        assert os.listdir(folder) == ["slim.onnx"]
        assert (folder / "slim.onnx").read_bytes() == b"from an earlier export"


@pytest.mark.parametrize(
    ("info", "raw", "message"),
    [
        (ModelInfo((64,)), None, "the model file states"),
        (IMAGE, np.zeros((4, 8, 8)), r"expected \(\*, 1, 8, 8\), got \(4, 8, 8\)"),
        (IMAGE, np.zeros((0, 1, 8, 8)), r"got \(0, 1, 8, 8\)"),
        (
            replace(IMAGE, normalization=Normalization((1.0, 2.0), (1.0, 1.0))),
            None,
            "expected 1 or 1 values of mean, got 2",
        ),
        (replace(IMAGE, normalization=Normalization((1.0,), (0.0,))), None, "expected every std above 0"),
    ],
)
def test_what_does_not_fit_is_refused(info: ModelInfo, raw: np.ndarray | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_contracts(pixels(), info, tmp_path / "out", raw)
    assert os.listdir(tmp_path) == []


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match="a file where a folder is needed"):
        write_contracts(columns(), TABLE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"mean": [1]}',
        '{"mean": "x", "std": [1]}',
        '{"mean": [], "std": [1]}',
        '{"mean": [1], "std": [0]}',
    ],
)
def test_malformed_normalisation_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"net\.onnx: edgeprune\.normalization: expected"):
        normalization_in({"edgeprune.normalization": text}, "net.onnx")


def test_metadata_without_normalisation_says_nothing_of_it() -> None:
    assert normalization_in(metadata_of(ModelInfo((3,)), "full", Preprocessing((3,))), "net.onnx") is None
