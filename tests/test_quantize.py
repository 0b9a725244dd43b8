"""int8, dynamic and half-precision files: real networks in onnxruntime, measured against the float file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import edgeprune.export.quanttools as quanttools
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.conversions import write_dynamic, write_half
from edgeprune.export.front import Preprocessing, fold_preprocessing
from edgeprune.export.judging import MIN_SNR_DB, QuantizedFile
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.export.quanttools import has_vnni, may_saturate_here
from edgeprune.formats.load import load
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import DataSource, Metric
from edgeprune.results import LeftOut

MODELS = Path(__file__).parent.parent / "models"
Accuracy = Callable[[Path], float]


# --- networks: trained ones, and small graphs written out by hand


class Digits:
    """A trained network as a float file, its calibration inputs and its accuracy on the validation split."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model, data = load(MODELS / f"{name}.pt"), open_data("digits")
        self.source = folder / f"{name}.onnx"
        self.calibration = self._split(data, "train")[0][:200]
        self.x, self.y = self._split(data, "val")
        self.exported = export_onnx(
            self.model.program, self.source, inputs=self.calibration[:8], metadata={"edgeprune.contract": "full"}
        )

    def _split(self, data: DataSource, split: str) -> tuple[np.ndarray, np.ndarray]:
        x, y = next(batches(getattr(data, split), 10_000))
        return normalize(x, self.model.info.normalization).numpy(), y.numpy()

    def accuracy(self, path: Path) -> float:
        return float((ort.run(ort.session(path), self.x).argmax(1) == self.y).mean())


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits("digits_cnn", tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits("digits_mlp", tmp_path_factory.mktemp("mlp"))


def saved(path: Path, nodes: list[Any], inputs: dict[str, Any], output: list[Any], weights: dict[str, Any]) -> Path:
    """A float32 graph whose last node gives `logits`; `inputs` maps names to sizes."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def linear_chain(path: Path, *matrices: np.ndarray, batch: str | int = "batch") -> Path:
    """`x @ m.T` for every matrix, with a ReLU between."""
    nodes, weights, value = [], {}, "input"
    for k, matrix in enumerate(matrices):
        last = k == len(matrices) - 1
        weights[f"fc{k}.weight"] = matrix.astype(np.float32)
        nodes.append(
            helper.make_node("Gemm", [value, f"fc{k}.weight"], ["logits" if last else f"h{k}"], f"gemm_{k}", transB=1)
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{k}"], [f"r{k}"], f"relu_{k}"))
        value = f"r{k}"
    return saved(path, nodes, {"input": [batch, matrices[0].shape[1]]}, [batch, len(matrices[-1])], weights)


def convolution(path: Path, sizes: tuple[Any, ...] = (8, 8)) -> Path:
    weights = {"conv.weight": np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)}
    node = helper.make_node("Conv", ["input", "conv.weight"], ["logits"], "conv", pads=[1, 1, 1, 1])
    return saved(path, [node], {"input": ["batch", 2, *sizes]}, ["batch", 4, *sizes], weights)


def uneven(path: Path) -> Path:
    """Four layers of which the middle two hand on one huge and seven small channels: 8 bits lose the small ones."""
    rng = np.random.default_rng(0)
    first, last = rng.standard_normal((8, 6)) + 0.1, rng.standard_normal((5, 8))
    scale = np.array([3e4, *[1.0] * 7])
    return linear_chain(path, first, np.diag(scale), np.diag(1 / scale), last)


def normals(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights_in(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def operators_in(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


# --- int8


@pytest.mark.usefixtures("exact_int8")
def test_trained_network_keeps_its_accuracy_in_int8(cnn: Digits, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    file = write_int8(cnn.source, out, cnn.calibration, value=cnn.accuracy, reduce_range=False)
    assert (file.kind, file.path, file.excluded, file.n_layers) == ("int8", str(out), (), 7)
    assert file.within_budget and file.drop <= 1 and file.note == ""
    assert file.drop == pytest.approx(100 * (cnn.accuracy(cnn.source) - cnn.accuracy(out)))
    assert file.snr_db > 30 and file.agreement > 0.99
    assert file.size_bytes == out.stat().st_size < 0.35 * cnn.exported.size_bytes
    assert os.listdir(tmp_path) == ["int8.onnx"]

    made, source = onnx.load(out), onnx.load(cnn.source)
    assert [*made.graph.input, *made.graph.output] == [*source.graph.input, *source.graph.output]
    metadata = {entry.key: entry.value for entry in made.metadata_props}
    assert metadata == {"edgeprune.contract": "full", "edgeprune.quantization": "int8"}
    assert {entry.domain for entry in made.opset_import} <= {"", "ai.onnx"}
    for n in (1, 5):
        assert ort.run(ort.session(out), cnn.x[:n]).shape == (n, 10)


def test_weights_are_symmetric_for_each_channel(mlp: Digits, tmp_path: Path) -> None:
    for reduce_range, largest in ((False, 127), (True, 64)):
        out = tmp_path / f"{reduce_range}.onnx"
        file = write_int8(mlp.source, out, mlp.calibration, value=mlp.accuracy, reduce_range=reduce_range)
        assert ("7 bits" in file.note) is reduce_range
        weights = weights_in(out)
        matrices = [name for name, value in weights.items() if value.dtype == np.int8 and value.ndim == 2]
        assert len(matrices) == 3
        for name in matrices:
            base = name.removesuffix("_quantized")
            assert weights[f"{base}_scale"].shape in {(n,) for n in weights[name].shape}
            assert not weights[f"{base}_zero_point"].any()
            assert largest - 2 <= np.abs(weights[name].astype(int)).max() <= largest


@pytest.mark.usefixtures("exact_int8")
def test_layers_that_cost_too_much_stay_in_float(tmp_path: Path) -> None:
    source, x = uneven(tmp_path / "float.onnx"), normals(200, 6)
    said: list[str] = []

    class Told(Silent):
        def stage(self, title: str) -> None:
            said.append(title)

        def advance(self, done: int, total: int, note: str = "") -> None:
            said.append(f"{done}/{total}")

        def say(self, message: str) -> None:
            said.append(message)

    lost = write_int8(source, tmp_path / "lost.onnx", x, max_drop=100)
    assert lost.drop > 20 and lost.excluded == ()
    file = write_int8(source, tmp_path / "int8.onnx", x, max_drop=5, progress=Told())
    assert file.within_budget and file.drop <= 5
    assert set(file.excluded) == {"fc1", "fc2"} and file.n_layers == 4
    assert "2 of 4 layers left in float: " in file.note and "fc1" in file.note
    kept = {name for name, value in weights_in(tmp_path / "int8.onnx").items() if value.dtype == np.float32}
    assert {"fc1.weight", "fc2.weight"} <= kept and not {"fc0.weight", "fc3.weight"} & kept
    assert "int8: each layer alone" in said and "4/4" in said
    assert any(line.startswith("int8: 1 of 4 layers in float: another best class on") for line in said)


def test_budget_that_no_choice_of_layers_keeps_is_said(tmp_path: Path) -> None:
    source, x = uneven(tmp_path / "float.onnx"), normals(50, 6)

    def accuracy(path: Path) -> float:
        return 0.9 if path == source else 0.4

    file = write_int8(source, tmp_path / "int8.onnx", x, value=accuracy, max_drop=1)
    assert not file.within_budget
    assert file.drop == pytest.approx(50)
    assert file.note.startswith("out of budget: a drop of 50.00 points (at most 1 asked); ship the float file")
    assert file.excluded == ()  # none is closer than the others: the smallest


@pytest.mark.usefixtures("exact_int8")
def test_network_without_classes_is_judged_by_its_noise(tmp_path: Path) -> None:
    source = convolution(tmp_path / "float.onnx")
    file = write_int8(source, tmp_path / "int8.onnx", normals(6, 2, 8, 8), reduce_range=False)
    assert (file.drop, file.agreement) == (None, None)
    assert file.snr_db > MIN_SNR_DB and file.within_budget
    noisy = linear_chain(tmp_path / "noisy.onnx", np.diag([1e5, 1.0]), np.array([[0.0, 1.0]]))  # one output: no classes
    file = write_int8(noisy, tmp_path / "noise.onnx", np.abs(normals(20, 2)), reduce_range=False)
    assert file.drop is None and not file.within_budget
    assert "signal-to-noise ratio" in file.note and "at least 20" in file.note


@pytest.mark.usefixtures("exact_int8")
def test_columns_of_numbers_are_no_classes(tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", normals(8, 6), normals(3, 8))
    error = Metric("MAE", "mm", 1.0, higher_is_better=False)
    file = write_int8(source, tmp_path / "int8.onnx", normals(40, 6), metric=error, reduce_range=False)
    assert (file.drop, file.agreement) == (None, None) and file.within_budget == (file.snr_db >= MIN_SNR_DB)
    scores = write_int8(source, tmp_path / "scores.onnx", normals(40, 6), max_drop=100, reduce_range=False)
    assert scores.agreement is not None and scores.drop == 100 * (1 - scores.agreement)


def test_size_that_is_free_stays_free(tmp_path: Path) -> None:
    source = convolution(tmp_path / "float.onnx", ("height", "width"))
    out = tmp_path / "int8.onnx"
    write_int8(source, out, normals(4, 2, 8, 8))
    for shape in ((1, 2, 8, 8), (3, 2, 11, 5)):
        x = normals(*shape)
        want, got = (ort.run(ort.session(path), x) for path in (source, out))
        assert got.shape == want.shape
        assert np.linalg.norm(want - got) < 0.2 * np.linalg.norm(want)


@pytest.mark.usefixtures("exact_int8")
@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_height_and_width_runs_in_int8(keepdims: int, tmp_path: Path) -> None:
    """Only a global average pool has an int8 kernel; a mean over other dims stays one."""
    shape = ["batch", 4, 1, 1] if keepdims else ["batch", 4]
    weights = {"conv.weight": normals(4, 2, 3, 3), "axes": np.array([-1, 2])}
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight"], ["h"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["h", "axes"], ["logits"], "mean", keepdims=keepdims),
    ]
    source = saved(tmp_path / "float.onnx", nodes, {"input": ["batch", 2, 8, 8]}, shape, weights)
    file = write_int8(source, tmp_path / "int8.onnx", normals(8, 2, 8, 8), max_drop=20, reduce_range=False)
    assert "GlobalAveragePool" in operators_in(tmp_path / "int8.onnx") and file.snr_db > 20
    weights["axes"] = np.array([1, 2])
    nodes[1] = helper.make_node("ReduceMean", ["h", "axes"], ["logits"], "mean", keepdims=1)
    other = saved(tmp_path / "other.onnx", nodes, {"input": ["batch", 2, 8, 8]}, ["batch", 1, 1, 8], weights)
    write_int8(other, tmp_path / "kept.onnx", normals(8, 2, 8, 8), reduce_range=False)
    assert "ReduceMean" in operators_in(tmp_path / "kept.onnx")


def test_hard_swish_is_computed_in_float_and_its_convolutions_in_int8(tmp_path: Path) -> None:
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.Hardswish(), torch.nn.Conv2d(8, 8, 3), torch.nn.Hardswish()]
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 4, 1), torch.nn.Flatten(), torch.nn.Linear(4 * 16, 4))
    x = torch.randn(16, 3, 8, 8)
    source = tmp_path / "f.onnx"
    export_onnx(capture(net, x[:2]), source, inputs=x.numpy())
    file = write_int8(source, tmp_path / "q.onnx", x.numpy(), max_drop=100.0)
    graph = onnx.load(file.path).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    gates = [node for node in graph.node if node.op_type == "HardSigmoid"]
    assert len(gates) == 2 and file.excluded == ()
    assert all(readers[gate.output[0]] == "Mul" for gate in gates)  # no conversion between the two
    assert sum(node.op_type == "Conv" for node in graph.node) == 3
    assert file.snr_db >= MIN_SNR_DB


def test_fixed_batch_is_kept(tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", normals(8, 6), normals(3, 8), batch=4)
    write_int8(source, tmp_path / "int8.onnx", normals(10, 6))  # two batches; two rows are left over
    assert ort.run(ort.session(tmp_path / "int8.onnx"), normals(4, 6)).shape == (4, 3)
    with pytest.raises(InputError, match="calibration: input: expected 4 rows for a batch, got 3"):
        write_int8(source, tmp_path / "other.onnx", normals(3, 6))


def test_several_inputs_with_integers(tmp_path: Path) -> None:
    class Several(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.linear = torch.nn.Embedding(4, 3), torch.nn.Linear(5, 3)

        def forward(self, left: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return self.linear(left) + self.table(tokens).sum(1)

    left, tokens = normals(40, 5), np.random.default_rng(0).integers(0, 4, (40, 2))
    program = capture(Several(), (torch.from_numpy(left[:2]), torch.from_numpy(tokens[:2])))
    source, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    export_onnx(program, source, inputs=[left, tokens])
    file = write_int8(source, out, [left, tokens], max_drop=10)
    assert file.within_budget and file.snr_db > 20
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert session.run(None, dict(zip(names, (left[:7], tokens[:7]), strict=True)))[0].shape == (7, 3)
    with pytest.raises(InputError, match="expected int64, got float32"):
        write_int8(source, tmp_path / "other.onnx", [left, tokens.astype(np.float32)])


@pytest.mark.usefixtures("exact_int8")
def test_raw_bytes_go_through_int8_both_ways(cnn: Digits, tmp_path: Path) -> None:
    """A folded file can be quantised, and a quantised file folded."""
    info = cnn.model.info
    front = Preprocessing(tuple(info.input_shape), info.normalization, None, 1.0)
    data = np.rint(cnn.x * info.normalization.std[0] + info.normalization.mean[0]).astype(np.uint8)
    folded, first, second = (tmp_path / f"{name}.onnx" for name in ("folded", "first", "second"))
    onnx.save(fold_preprocessing(onnx.load(cnn.source), front), folded)
    file = write_int8(folded, first, data, reduce_range=False)
    assert file.within_budget and {"Cast", "Sub", "Div"} <= set(operators_in(first))
    write_int8(cnn.source, tmp_path / "int8.onnx", cnn.calibration, reduce_range=False)
    onnx.save(fold_preprocessing(onnx.load(tmp_path / "int8.onnx"), front), second)
    for path in (first, second):
        assert (ort.run(ort.session(path), data).argmax(1) == cnn.y).mean() > 0.98


# --- what is refused


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (np.zeros((0, 6), np.float32), r"expected \(\*, 6\), got \(0, 6\)"),
        (normals(4, 5), r"calibration: input: expected \(\*, 6\), got \(4, 5\)"),
        (normals(6), r"expected \(\*, 6\), got \(6,\)"),
        ([normals(4, 6), normals(4, 6)], r"expected 1 array \(input\), got 2"),
        (np.full((4, 6), np.nan, np.float32), "expected finite numbers"),
        (np.full((4, 6), "a"), "expected float32, got <U1"),
        (np.full((4, 6), 3e38, np.float32), "expected finite outputs on the calibration inputs"),
    ],
)
def test_calibration_that_cannot_be_used(calibration: Any, message: str, tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", 10 * normals(8, 6), normals(3, 8))
    with pytest.raises(InputError, match=message):
        write_int8(source, tmp_path / "int8.onnx", calibration)
    assert os.listdir(tmp_path) == ["float.onnx"]


def test_files_that_cannot_be_quantised(tmp_path: Path) -> None:
    x = normals(8, 6)
    source = linear_chain(tmp_path / "float.onnx", normals(8, 6), normals(3, 8))
    write_int8(source, tmp_path / "int8.onnx", x)
    relu = saved(tmp_path / "relu.onnx", [helper.make_node("Relu", ["input"], ["logits"])],
                 {"input": ["batch", 6]}, ["batch", 6], {})  # fmt: skip
    old = onnx.load(source)
    old.opset_import[0].version = 12
    onnx.save(old, tmp_path / "old.onnx")
    onnx.save(onnx.load(source), tmp_path / "split.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:-40])
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in {
        "int8.onnx": "expected a float network, got one that is quantised already",
        relu.name: "expected float32 convolutions, linear layers or matrix products to quantise, got none",
        "old.onnx": "expected ONNX opset 13 or later, got 12",
        "split.onnx": "expected .*weights.* in",
        "cut.onnx": "truncated or of another format",
        "empty.onnx": "got an empty file",
        "missing.onnx": "got nothing there",
        ".": "got a folder",
    }.items():
        with pytest.raises(InputError, match=message):
            write_int8(tmp_path / name, tmp_path / "out.onnx", x)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("max_drop", [-1.0, float("nan"), float("inf")])
def test_budget_that_is_none(max_drop: float, tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", normals(3, 6))
    with pytest.raises(InputError, match="expected a number of at least 0"):
        write_int8(source, tmp_path / "int8.onnx", normals(8, 6), max_drop=max_drop)


def test_float_file_is_never_replaced(tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", normals(3, 6))
    before = source.read_bytes()
    for write in (write_int8, write_dynamic, write_half):
        with pytest.raises(InputError, match="expected another file than the float one"):
            write(source, tmp_path / "." / "float.onnx", normals(8, 6))
    assert source.read_bytes() == before


def test_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    source = linear_chain(tmp_path / "float.onnx", normals(8, 6), normals(3, 8))
    (tmp_path / "int8.onnx").write_bytes(b"from before")

    def accuracy(path: Path) -> float:
        raise InputError("the validation split is gone")

    with pytest.raises(InputError, match="the validation split is gone"):
        write_int8(source, tmp_path / "int8.onnx", normals(8, 6), value=accuracy)
    assert (tmp_path / "int8.onnx").read_bytes() == b"from before"
    assert sorted(os.listdir(tmp_path)) == ["float.onnx", "int8.onnx"]


# --- dynamic and half precision


def test_dynamic_file_keeps_weights_of_8_bits(mlp: Digits, tmp_path: Path) -> None:
    out = tmp_path / "dynamic.onnx"
    file = write_dynamic(mlp.source, out, mlp.calibration, value=mlp.accuracy)
    assert isinstance(file, QuantizedFile)
    assert (file.kind, file.n_layers, file.within_budget) == ("dynamic", 3, True)
    assert file.size_bytes < 0.35 * mlp.exported.size_bytes
    assert operators_in(out).count("MatMulInteger") == 3
    metadata = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert metadata["edgeprune.quantization"] == "dynamic" and metadata["edgeprune.contract"] == "full"
    assert ort.run(ort.session(out), mlp.x[:3]).shape == (3, 10)


@pytest.mark.usefixtures("exact_int8")
def test_dynamic_layers_that_share_their_weights(tmp_path: Path) -> None:
    """onnxruntime's own rewriting would transpose square weights back for the second layer."""
    weights = {"fc.weight": normals(6, 6), "head.weight": normals(4, 6)}
    nodes = [
        helper.make_node("Gemm", ["input", "fc.weight"], ["a"], "first", transB=1),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Gemm", ["b", "fc.weight"], ["c"], "second", transB=1),
        helper.make_node("Gemm", ["c", "head.weight"], ["logits"], "head", transB=1),
    ]
    source = saved(tmp_path / "float.onnx", nodes, {"input": ["batch", 6]}, ["batch", 4], weights)
    x = normals(100, 6)
    file = write_dynamic(source, tmp_path / "dynamic.onnx", x, max_drop=100, reduce_range=False)
    assert isinstance(file, QuantizedFile)
    want = ort.run(ort.session(source), x)
    [got] = ReferenceEvaluator(file.path).run(None, {"input": x})  # its products do not saturate, whatever the CPU's do
    assert 20 * np.log10(np.linalg.norm(want) / np.linalg.norm(want - got)) > 30
    file = write_int8(source, tmp_path / "int8.onnx", normals(100, 6), max_drop=5, reduce_range=False)
    assert file.snr_db > 30 and file.excluded == ()


def test_dynamic_lstm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((1, 32, 5)).astype(np.float32),
        "r": rng.standard_normal((1, 32, 8)).astype(np.float32),
        "axes": np.array([0]),
    }
    nodes = [
        helper.make_node("LSTM", ["input", "w", "r"], ["", "state"], "lstm", hidden_size=8),
        helper.make_node("Squeeze", ["state", "axes"], ["logits"], "squeeze"),
    ]
    source = saved(tmp_path / "float.onnx", nodes, {"input": ["length", 4, 5]}, [4, 8], weights)
    file = write_dynamic(source, tmp_path / "dynamic.onnx", normals(6, 4, 5), max_drop=25, reduce_range=True)
    assert isinstance(file, QuantizedFile) and file.snr_db > 20
    assert "DynamicQuantizeLSTM" in operators_in(tmp_path / "dynamic.onnx")


def test_dynamic_convolutions_are_left_out(tmp_path: Path) -> None:
    source = convolution(tmp_path / "float.onnx")
    left = write_dynamic(source, tmp_path / "dynamic.onnx", normals(4, 2, 8, 8))
    assert isinstance(left, LeftOut) and left.kind == "dynamic" and "no linear or LSTM layers" in left.reason
    assert os.listdir(tmp_path) == ["float.onnx"]


def test_half_precision_only_where_the_cpu_computes_in_it(mlp: Digits, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    made = write_half(mlp.source, out, mlp.calibration, value=mlp.accuracy)
    if isinstance(made, LeftOut):
        assert "no half-precision kernels" in made.reason and not out.exists()
    else:
        assert made.within_budget and made.size_bytes < 0.6 * mlp.exported.size_bytes
        assert ort.run(ort.session(out), mlp.x[:3]).dtype == np.float32


# --- the CPU


@pytest.mark.parametrize(
    ("flags", "machine", "vnni", "saturates"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", "x86_64", True, False),
        ("flags\t\t: fpu avx2 avx_vnni", "AMD64", True, False),
        ("flags\t\t: fpu avx2 avx512f", "x86_64", False, True),
        ("nothing of the kind", "x86_64", None, True),
        (None, "x86_64", None, True),
        ("Features\t: asimddp", "aarch64", None, False),
    ],
)
def test_vnni_is_read_from_the_cpu(
    flags: str | None,
    machine: str,
    vnni: bool | None,
    saturates: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "cpuinfo"
    if flags is not None:
        place.write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(quanttools, "_CPU_FLAGS", place)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert has_vnni() is vnni
    assert may_saturate_here() is saturates
