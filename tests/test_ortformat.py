"""The ORT format: real .ort files in onnxruntime, and the list of operators that a reduced build needs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError, ParityError
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.onnx import export_onnx
from edgeprune.export.ortformat import OrtFile, write_ort
from edgeprune.formats.load import load
from edgeprune.measure.latency import measure_files
from edgeprune.records import DataSource

MODELS = Path(__file__).parents[1] / "models"
CONFIG = "cnn.required_operators_and_types.config"


@pytest.fixture(scope="module")
def images(digits: DataSource) -> np.ndarray:
    """Real digits, normalised."""
    raw = np.stack([digits.test[index][0].numpy() for index in range(40)])  # type: ignore[index]
    mean, std = digits.normalization.mean[0], digits.normalization.std[0]
    return (raw - np.float32(mean)) / np.float32(std)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("ort") / "cnn.onnx"
    export_onnx(load(MODELS / "digits_cnn.pt").program, path, inputs=images)
    return path


def run(path: str | Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def graph(path: Path, *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, **weights: np.ndarray) -> Path:
    """A file from `input` to `y`, both `(batch, 4)`."""
    values = [helper.make_tensor_value_info(name, kind, ["batch", 4]) for name in ("input", "y")]
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], held),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


def test_a_trained_network_gives_the_same_at_any_batch(cnn: Path, images: np.ndarray, tmp_path: Path) -> None:
    done = write_ort(cnn, tmp_path / "cnn.ort", images)
    assert isinstance(done, OrtFile) and done.path == str(tmp_path / "cnn.ort") and done.parity <= 1e-4
    assert done.size_bytes == os.path.getsize(done.path) and done.config_path == str(tmp_path / CONFIG)
    for batch in (1, 3, 40):
        np.testing.assert_allclose(run(done.path, images[:batch]), run(cnn, images[:batch]), atol=1e-4)
    assert Path(done.path).read_bytes()[4:8] == b"ORTM"  # the format's own mark
    assert sorted(os.listdir(tmp_path)) == ["cnn.ort", CONFIG]
    times = measure_files((cnn, Path(done.path)), (images[:1], images[:1]), runs=5, warmup=1)
    assert times.shape == (5, 2) and (times > 0).all()


def test_the_list_of_operators_is_what_the_file_holds(cnn: Path, images: np.ndarray, tmp_path: Path) -> None:
    done = write_ort(cnn, tmp_path / "cnn.ort", images)
    assert done.operators == ("FusedConv", "Gemm", "ReduceMean", "Reshape")
    lines = Path(done.config_path).read_text().splitlines()
    assert f"--include_ops_by_config {CONFIG} --enable_reduced_operator_type_support" in lines[1]
    assert 'ai.onnx;13;Gemm{"inputs": {"0": ["float"]}}' in lines and "com.microsoft;1;FusedConv" in lines
    content = Path(done.path).read_bytes() + Path(done.config_path).read_bytes()
    assert str(tmp_path).encode() not in content and str(cnn.parent).encode() not in content


def test_a_fixed_batch_stays_fixed(cnn: Path, images: np.ndarray, tmp_path: Path) -> None:
    write_fixed_batch(cnn, tmp_path / "one.onnx", 1, images)
    done = write_ort(tmp_path / "one.onnx", tmp_path / "one.ort", images[:1])
    assert run(done.path, images[:1]).shape == (1, 10)
    with pytest.raises(InputError, match=r"expected \(1, 1, 8, 8\), got \(40, 1, 8, 8\)"):
        write_ort(tmp_path / "one.onnx", tmp_path / "two.ort", images)
    assert not (tmp_path / "two.ort").exists()


def test_a_platform_of_its_own(cnn: Path, images: np.ndarray, tmp_path: Path) -> None:
    arm, amd64 = (write_ort(cnn, tmp_path / f"{name}.ort", images, platform=name) for name in ("arm", "amd64"))
    assert "FusedConv" in arm.operators and "ReorderOutput" in amd64.operators


def test_types_are_listed_and_drawn_inputs_fit_them(tmp_path: Path) -> None:
    source = graph(
        tmp_path / "tokens.onnx",
        helper.make_node("Mul", ["input", "two"], ["y"]),
        kind=TensorProto.INT64,
        two=np.asarray([2], np.int64),
    )
    done = write_ort(source, tmp_path / "tokens.ort")
    assert (done.operators, done.parity) == (("Mul",), 0.0)
    assert 'Mul{"inputs": {"0": ["int64_t"]}}' in Path(done.config_path).read_text()


def test_nothing_is_logged_and_the_process_keeps_its_logging(
    cnn: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.root.handlers)
    write_ort(cnn, tmp_path / "cnn.ort")
    assert capfd.readouterr() == ("", "") and logging.root.handlers == before


def test_an_earlier_file_is_replaced_and_kept_where_the_new_one_fails(cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cnn.ort"
    first = write_ort(cnn, out)
    content = out.read_bytes()
    nan = graph(tmp_path / "nan.onnx", helper.make_node("Log", ["input"], ["y"]))
    with pytest.raises(ParityError):
        write_ort(nan, out, np.full((2, 4), -1, np.float32))
    assert out.read_bytes() == content and sorted(os.listdir(out.parent)) == ["cnn.ort", CONFIG]
    assert write_ort(cnn, out) == first


def test_a_network_that_is_wrong_leaves_no_folder(tmp_path: Path) -> None:
    unknown = graph(tmp_path / "x.onnx", helper.make_node("Nonsense", ["input"], ["y"], domain="nobody"))
    with pytest.raises(InputError, match=r"x\.onnx: onnxruntime cannot load it: .*Nonsense"):
        write_ort(unknown, tmp_path / "made" / "x.ort")
    assert os.listdir(tmp_path) == ["x.onnx"]


def test_names_and_places(cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.ort"):
        write_ort(cnn, tmp_path / "cnn.bin")
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(InputError, match="expected a file to replace, got a folder"):
        write_ort(cnn, tmp_path / "cnn.ort")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file where a folder is needed"):
        write_ort(cnn, tmp_path / "file" / "cnn.ort")
    assert sorted(os.listdir(tmp_path)) == [CONFIG, "file"]


@pytest.mark.parametrize("content", [b"", b"no model", b"ORTMxxxx" * 9], ids=["empty", "text", "half an .ort"])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.onnx: expected an ONNX file"):
        write_ort(tmp_path / "x.onnx", tmp_path / "x.ort")
    assert os.listdir(tmp_path) == ["x.onnx"]


def test_weights_outside_of_the_file_are_refused(tmp_path: Path) -> None:
    source = graph(tmp_path / "x.onnx", helper.make_node("Add", ["input", "w"], ["y"]), w=np.ones(4, np.float32))
    proto = onnx.load(source)
    onnx.save(proto, source, save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(InputError, match=r"expected all weights in the file, got some in 'w\.bin'"):
        write_ort(source, tmp_path / "x.ort")


def test_no_input_a_number_and_a_list(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])
    relu, listed = helper.make_node("Relu", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x"], ["y"])
    number = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("x", "y")]
    pair = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    for name, node, inputs, result in (
        ("none", constant, [], pair),
        ("number", relu, number[:1], number[1]),
        ("list", listed, number[:1], sequence),
    ):
        model = helper.make_model(
            helper.make_graph([node], "g", inputs, [result]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        )
        onnx.save(model, tmp_path / f"{name}.onnx")
    assert write_ort(tmp_path / "number.onnx", tmp_path / "number.ort").parity == 0
    assert write_ort(tmp_path / "none.onnx", tmp_path / "none.ort").parity == 0
    with pytest.raises(InputError, match=r"list\.onnx: 'y': expected a tensor of numbers, got seq\(tensor\(float\)\)"):
        write_ort(tmp_path / "list.onnx", tmp_path / "list.ort")
