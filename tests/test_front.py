"""The front folded into the graph: raw bytes in, and the same out as PyTorch gives on normalised floats."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import edgeprune.export.contracts as contracts
from edgeprune.commands.validate import validate_files
from edgeprune.data import normalize, open_data
from edgeprune.errors import InputError, ParityError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.front import Preprocessing, fold_preprocessing, raw_bytes
from edgeprune.export.metadata import byte_scale_in, normalization_in
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program, capture
from edgeprune.records import InputFeatures, ModelInfo, Normalization
from edgeprune.requests import ValidateRequest

BYTE = 1 / 255
PIXELS = (0, 35, 36, 107)  # of 3x6x6: channels 0, 0, 1, 2
COLOURS = ModelInfo((3, 6, 6), classes=("a", "b"), normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
MODELS = Path(__file__).parent.parent / "models"


class Gathering(nn.Module):
    """Gathers `keep` along dim 1, of the flattened input where `flat`, then runs `tail`."""

    def __init__(self, keep: tuple[int, ...], tail: nn.Module, flat: bool) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor(keep))
        self.tail, self.flat = tail, flat

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flat else x
        return self.tail(torch.index_select(x, 1, self.edgeprune_keep_x))


def padded_cnn(channels: int = 3) -> nn.Module:
    """Zero padding stands for the mean colour: folding the scaling into the weights would change the border."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip


def pixels() -> Program:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.Linear(len(PIXELS), 8), nn.ReLU(), nn.Linear(8, 2))
    return capture(Gathering(PIXELS, tail, flat=True), torch.randn(2, 3, 6, 6))


def colours() -> Program:
    return capture(Gathering((0, 2), padded_cnn(2), flat=False), torch.randn(2, 3, 6, 6))


def image_bytes(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8)


def run(path: Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def input_of(path: Path) -> tuple[int, list[str | int]]:
    """Type and sizes of the only input."""
    (value,) = onnx.load(path).graph.input
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def metadata_in(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def wanted(program: Program, raw: np.ndarray, normalization: Normalization) -> np.ndarray:
    """What PyTorch gives on the normalised floats."""
    with torch.no_grad():
        return program.module()(normalize(torch.from_numpy(raw), normalization)).numpy()


@pytest.mark.parametrize("build", [pixels, colours])
def test_both_contracts_take_raw_bytes(build: object, tmp_path: Path) -> None:
    program, data = build(), image_bytes(40, 3, 6, 6)  # type: ignore[operator]
    raw = data.astype(np.float32) / 255
    files = write_contracts(program, COLOURS, tmp_path, raw, preprocess="fold", byte_scale=BYTE)
    assert [Path(file.path).name for file in files] == ["full.onnx", "slim.onnx", "preprocess.onnx", "features.json"]
    assert [file.parity is not None and file.parity <= 1e-4 for file in files] == [True, True, True, False]
    assert all(Path(file.path).stat().st_size == file.size_bytes for file in files)

    flat = build is pixels
    kept = data.reshape(40, -1)[:, list(PIXELS)] if flat else data[:, [0, 2]]
    assert input_of(tmp_path / "full.onnx") == (TensorProto.UINT8, ["batch", 3, 6, 6])
    assert input_of(tmp_path / "slim.onnx") == (TensorProto.UINT8, ["batch", *kept.shape[1:]])
    want = wanted(program, raw, COLOURS.normalization)
    for n in (1, 3, 40):
        np.testing.assert_allclose(run(tmp_path / "full.onnx", data[:n]), want[:n], atol=1e-5)
        np.testing.assert_allclose(run(tmp_path / "slim.onnx", kept[:n]), want[:n], atol=1e-5)
    chosen = run(tmp_path / "preprocess.onnx", data)
    assert chosen.dtype == np.uint8
    np.testing.assert_array_equal(chosen, kept)

    operators = [node.op_type for node in onnx.load(tmp_path / "full.onnx").graph.node]
    assert operators[: 5 if flat else 4] == (["Flatten"] if flat else []) + ["Gather", "Cast", "Sub", "Div"]
    document = json.loads((tmp_path / "features.json").read_text())
    source = data.reshape(40, -1) if document["dim"] is None else data
    np.testing.assert_array_equal(source[:, document["indices"]], kept)
    assert document["input_type"] == "uint8"
    assert set(document["scaling"]["mean"]) == {0.0} and set(document["scaling"]["std"]) == {1.0}


def test_files_say_that_they_take_raw_inputs(tmp_path: Path) -> None:
    """One that replaces an export with the preprocessing apart leaves no preprocess.onnx behind."""
    program = capture(padded_cnn(), torch.randn(2, 3, 6, 6))
    write_contracts(program, COLOURS, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["features.json", "preprocess.onnx", "slim.onnx"]
    files = write_contracts(program, COLOURS, tmp_path, preprocess="fold", byte_scale=BYTE)
    assert (
        sorted(os.listdir(tmp_path)) == sorted(Path(file.path).name for file in files) == ["features.json", "slim.onnx"]
    )
    metadata = metadata_in(tmp_path / "slim.onnx")
    assert metadata["edgeprune.contract"] == "full"
    assert json.loads(metadata["edgeprune.preprocess"]) == "folded"
    assert byte_scale_in(metadata, "slim.onnx") == BYTE
    assert normalization_in(metadata, "slim.onnx") == Normalization((0.0,), (1.0,))
    folded = json.loads(metadata["edgeprune.folded_normalization"])
    assert folded == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_padding_still_stands_for_normalised_zeros(tmp_path: Path) -> None:
    """Without normalisation a byte is only scaled; the free height and width stay free."""
    torch.manual_seed(0)
    program = capture(padded_cnn(1), torch.randn(2, 1, 8, 8), dynamic_size=True)
    data = image_bytes(5, 1, 8, 8)
    raw, info = data.astype(np.float32), ModelInfo((1, 8, 8), normalization=Normalization((128.0,), (64.0,)))
    write_contracts(program, info, tmp_path / "scaled", raw, preprocess="fold", byte_scale=1.0)
    kind, sizes = input_of(tmp_path / "scaled" / "slim.onnx")
    assert kind == TensorProto.UINT8 and sizes == ["batch", 1, "height", "width"]
    for given in (data, image_bytes(2, 1, 11, 9)):
        want = wanted(program, given.astype(np.float32), info.normalization)
        np.testing.assert_allclose(run(tmp_path / "scaled" / "slim.onnx", given), want, atol=1e-5)

    plain = replace(info, normalization=None)
    write_contracts(program, plain, tmp_path / "plain", raw / 255, preprocess="fold", byte_scale=BYTE)
    want = wanted(program, raw / 255, Normalization((0.0,), (1.0,)))
    np.testing.assert_allclose(run(tmp_path / "plain" / "slim.onnx", data), want, atol=1e-5)
    assert [node.op_type for node in onnx.load(tmp_path / "plain" / "slim.onnx").graph.node][:2] == ["Cast", "Div"]


def test_table_stays_float_and_is_not_normalised_twice(tmp_path: Path) -> None:
    """Digits as a table of floats: validation reads from the file that nothing is left to normalise."""
    model, data = load(MODELS / "digits_mlp.pt"), open_data("digits")
    raw = torch.stack([data.val[i][0] for i in range(32)]).numpy()
    write_contracts(model.program, model.info, tmp_path / "apart", raw, name="net")
    write_contracts(model.program, model.info, tmp_path / "fold", raw, name="net", preprocess="fold")
    assert sorted(os.listdir(tmp_path / "fold")) == ["features.json", "net.onnx"]
    assert input_of(tmp_path / "fold" / "net.onnx") == (TensorProto.FLOAT, ["batch", 1, 8, 8])
    request = ValidateRequest(
        str(tmp_path / "apart" / "net.onnx"), str(tmp_path / "fold" / "net.onnx"), "digits", runs=5
    )
    record = validate_files(request, data)
    assert record.parity < 1e-4
    assert record.accuracy.drop_points == 0 and record.accuracy.slim > 0.97


def test_trained_network_classifies_the_bytes_of_its_test_split_the_same(tmp_path: Path) -> None:
    model, data = load(MODELS / "digits_cnn.pt"), open_data("digits")
    raw = torch.stack([data.test[i][0] for i in range(len(data.test))]).numpy()  # type: ignore[arg-type]
    labels = np.array([data.test[i][1] for i in range(len(raw))])
    write_contracts(model.program, model.info, tmp_path, raw, name="net", preprocess="fold", byte_scale=1.0)
    logits = run(tmp_path / "net.onnx", raw_bytes(raw, 1.0))
    want = wanted(model.program, raw, model.info.normalization)
    np.testing.assert_array_equal(logits.argmax(1), want.argmax(1))
    assert (logits.argmax(1) == labels).mean() > 0.98


def test_branches_of_the_network_read_the_normalised_input() -> None:
    """The bodies of an If have no inputs of their own: they read the network's."""
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    bodies = [
        helper.make_graph([helper.make_node(op, ["input"], ["y"])], name, [], [out])
        for op, name in (("Neg", "then"), ("Identity", "else"))
    ]
    nodes = [helper.make_node("If", ["condition"], ["logits"], then_branch=bodies[0], else_branch=bodies[1])]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "branches", [value], [logits], [condition])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    untouched = network.SerializeToString()
    folded = fold_preprocessing(network, Preprocessing((2,), Normalization((1.0, 2.0), (2.0, 4.0)), None, 0.5))
    assert network.SerializeToString() == untouched
    session = onnxruntime.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": np.array([[2, 4], [0, 255]], np.uint8)})[0]
    np.testing.assert_allclose(got, [[0.0, 0.0], [0.5, -(127.5 - 2) / 4]], atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "scale", "got"), [([0.0, 0.5, 1.0], BYTE, "0.5"), ([0.0, 256.0], 1.0, "256"), ([-1.0], 1.0, "-1")]
)
def test_what_no_byte_stands_for_is_refused(raw: list[float], scale: float, got: str) -> None:
    with pytest.raises(InputError, match=f"expected bytes times .* got {got}"):
        raw_bytes(np.array([raw], np.float32), scale)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "NaN", "Infinity", "[1]"])
def test_malformed_byte_scale_is_refused(text: str) -> None:
    assert byte_scale_in({}, "net.onnx") is None
    with pytest.raises(InputError, match=r"net\.onnx: edgeprune\.byte_scale: expected a number above 0"):
        byte_scale_in({"edgeprune.byte_scale": text}, "net.onnx")


def test_every_byte_is_found_again() -> None:
    data = np.arange(256, dtype=np.uint8)
    for scale in (BYTE, 1.0, 1 / 128):
        np.testing.assert_array_equal(raw_bytes(data.astype(np.float32) * np.float32(scale), scale), data)


@pytest.mark.parametrize(
    ("info", "scale", "message"),
    [
        (replace(COLOURS, normalization=None), None, "nothing to fold"),
        (COLOURS, 0.0, "byte scale: expected a number above 0"),
        (COLOURS, float("nan"), "byte scale: expected a number above 0"),
        (replace(COLOURS, normalization=Normalization((1.0, 2.0), (1.0,))), BYTE, "1 or 3 values of mean, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(info: ModelInfo, scale: float | None, message: str, tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), torch.randn(2, 3, 6, 6))
    with pytest.raises(InputError, match=message):
        write_contracts(program, info, tmp_path / "out", preprocess="fold", byte_scale=scale)
    assert os.listdir(tmp_path) == []


def test_networks_that_take_no_single_float_input_are_refused(tmp_path: Path) -> None:
    several = capture(nn.Bilinear(3, 4, 2), (torch.randn(2, 3), torch.randn(2, 4)))
    with pytest.raises(InputError, match="expected a network with one input"):
        write_contracts(several, ModelInfo((3,)), tmp_path / "out", preprocess="fold", byte_scale=1.0)
    tokens = capture(nn.Sequential(nn.Embedding(256, 3), nn.Flatten()), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="expected a network that takes floats, got int64"):
        write_contracts(tokens, ModelInfo((4,)), tmp_path / "out", preprocess="fold", byte_scale=1.0)
    with pytest.raises(InputError, match="expected apart or fold, got 'folded'"):
        write_contracts(tokens, ModelInfo((4,)), tmp_path / "out", preprocess="folded")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_wrong_front_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network alone is right; the scaling before it is that of another data set."""

    def folded(network: onnx.ModelProto, preprocessing: Preprocessing, gather: bool = False) -> onnx.ModelProto:
        return fold_preprocessing(network, replace(preprocessing, byte_scale=1.0), gather)

    monkeypatch.setattr(contracts, "fold_preprocessing", folded)
    with pytest.raises(ParityError, match="slim.onnx folded"):
        program = capture(nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), torch.randn(2, 3, 6, 6))
        write_contracts(program, COLOURS, tmp_path / "out", preprocess="fold", byte_scale=BYTE)
    assert os.listdir(tmp_path) == []


def test_features_of_a_flattened_image_are_scaled_by_their_channel() -> None:
    """Slim contract: what comes in are the kept bytes alone."""
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["logits"])], "identity", [value], [out])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    features = InputFeatures(108, PIXELS, None)
    folded = fold_preprocessing(network, Preprocessing((3, 6, 6), COLOURS.normalization, features, BYTE))
    session = onnxruntime.InferenceSession(folded.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": np.full((1, 4), 255, np.uint8)})[0]
    np.testing.assert_allclose(got, [[0.5 / 0.2, 0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4]], rtol=1e-6)
