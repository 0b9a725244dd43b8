"""OpenVINO: real files in its own runtime, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from target_nets import in_pytorch, kept_sensors, of_sensors, raw_sensors, saved_sensors, saved_shuffled
from test_runtimes import Said

import edgeprune.export.openvino as target
from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export.openvino import with_orders_apart
from edgeprune.export.targets import targets_of
from edgeprune.requests import ExportRequest
from edgeprune.results import LeftOut


@pytest.fixture
def openvino() -> None:
    pytest.importorskip("openvino", reason="edgeprune[openvino] is not installed")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    [openvino] = targets_of(["openvino"])
    with pytest.raises(InputError, match=r"^OpenVINO is not installed: pip install 'edgeprune\[openvino\]'$"):
        openvino.check_installed()


# --- orders of channels


def gathering(order: list[int], axis: int = 1) -> onnx.ModelProto:
    """Channels of `(batch, 6, 5)` in an order, then twice that."""
    places = numpy_helper.from_array(np.array(order), "places")
    nodes = [
        helper.make_node("Gather", ["x", "places"], ["y"], axis=axis),
        helper.make_node("Add", ["y", "y"], ["z"]),
    ]
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", None, None]) for name in "xz")
    graph = helper.make_graph(nodes, "g", [x], [z], [places])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("order", "axis"), [([3, 1, 0, 2, 5, 4], 1), ([4, 3, 2, 1, 0], 2), ([1, 0], 1)])
def test_an_order_becomes_two_halves_that_give_the_same(order: list[int], axis: int) -> None:
    proto = gathering(order, axis)
    apart = with_orders_apart(proto)
    assert [node.op_type for node in apart.graph.node] == ["Gather", "Gather", "Concat", "Add"]
    onnx.checker.check_model(apart)
    x = np.random.default_rng(0).standard_normal((2, 6, 5), dtype=np.float32)
    want, got = (onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"x": x})[0] for one in (proto, apart))
    np.testing.assert_array_equal(got, want)
    assert [node.op_type for node in proto.graph.node] == ["Gather", "Add"]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 1, 2], [0, 0, 1], [-1, 0, 1], [0]])
def test_what_is_no_other_order_of_all_stays(order: list[int]) -> None:
    proto = gathering(order)
    assert with_orders_apart(proto) is proto


# --- with the package


@pytest.fixture
def shuffled(tmp_path: Path) -> Path:
    return saved_shuffled(tmp_path, (3, 8, 8))


def request(net: Path, **changes: object) -> ExportRequest:
    return ExportRequest(model=str(net), out=str(net.parent / "out"), targets=("openvino",), **changes)  # type: ignore[arg-type]


def answers(path: Path, x: np.ndarray) -> list[np.ndarray]:
    """By OpenVINO's own Python interface alone."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = model([x])
    return [found[output] for output in model.outputs]


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("batch", [None, 2])
def test_a_shuffled_network_gives_what_pytorch_gives(shuffled: Path, batch: int | None) -> None:
    record = export(request(shuffled, batch=batch, dense=str(shuffled)))
    out = shuffled.parent / "out"
    files = {Path(file.path).name: file for file in record.files}
    kinds = ["xml", "bin", "fp16.xml", "fp16.bin"]
    assert list(files)[-4:] == [f"net.openvino.{kind}" for kind in kinds]
    assert "Gather" in {node.op_type for node in onnx.load(out / "net.onnx").graph.node}
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    want = in_pytorch(shuffled, x)
    for name, tolerance in (("net.openvino.xml", 1e-5), ("net.openvino.fp16.xml", 1e-2)):
        for a, b in zip(want, answers(out / name, x), strict=True):
            assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
        assert files[name].ratio is not None and files[name].parity is not None
    assert files["net.openvino.fp16.bin"].size_bytes < 0.6 * files["net.openvino.bin"].size_bytes
    assert record.targets is not None and [row.target for row in record.targets.rows] == ["onnx", *["openvino"] * 2]


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
def test_a_wrong_file_is_refused_with_the_figure(shuffled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever OpenVINO makes of another graph is not shipped as this one."""

    def other(proto: onnx.ModelProto) -> onnx.ModelProto:
        for tensor in proto.graph.initializer:
            if len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
        return proto

    monkeypatch.setattr(target, "with_orders_apart", other)
    said = r"^net\.openvino\.xml in OpenVINO at batch \d: largest error expected at most \S+, got [\d.e+-]+$"
    with pytest.raises(ParityError, match=said):
        export(request(shuffled))
    assert not (shuffled.parent / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
def test_a_half_precision_file_that_is_too_far_off_is_left_out(shuffled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in float is right, and is shipped."""
    monkeypatch.setattr(target, "HALF_TOLERANCE", 1e-6)
    said = Said()
    record = export(request(shuffled), said)
    names = [Path(file.path).name for file in record.files]
    assert names[-2:] == ["net.openvino.xml", "net.openvino.bin"]
    assert sorted(path.name for path in (shuffled.parent / "out").glob("net.openvino*")) == sorted(names[-2:])
    [line] = [line for line in said.lines if "left out" in line]
    xml, weights = record.files[-2:]
    assert xml.left_out == (LeftOut("fp16", line.removeprefix("left out: ")),) and not weights.left_out
    assert line.startswith("left out: net.openvino.fp16.xml in OpenVINO at batch ") and "expected at most" in line


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
def test_what_it_cannot_express_is_one_line(shuffled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def foreign(proto: onnx.ModelProto) -> onnx.ModelProto:
        proto.graph.node[0].op_type = "NoSuchOperator"
        return proto

    monkeypatch.setattr(target, "with_orders_apart", foreign)
    with pytest.raises(InputError, match=r"^OpenVINO cannot convert net\.onnx: .*") as told:
        export(request(shuffled))
    assert "\n" not in str(told.value) and "NoSuchOperator" in str(told.value)


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
def test_folded_preprocessing_takes_raw_values(shuffled: Path) -> None:
    record = export(request(shuffled, preprocess="fold"))
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    want = in_pytorch(shuffled, (x - 0.5) / 0.25)[0]
    got = answers(shuffled.parent / "out" / "net.openvino.xml", x)[0]
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-4)
    assert record.targets is not None and record.targets.rows[1].parity is not None


@pytest.mark.slow
@pytest.mark.usefixtures("openvino")
def test_the_mean_of_raw_sensors_is_not_halved(tmp_path: Path) -> None:
    net, raw = saved_sensors(tmp_path), raw_sensors(9)
    record = export(request(net, preprocess="fold"))
    assert not any(file.left_out for file in record.files)
    want = of_sensors(net, raw)
    for name, share in (("net.openvino.xml", 1e-4), ("net.openvino.fp16.xml", 5e-3)):
        [got] = answers(tmp_path / "out" / name, kept_sensors(raw))
        assert np.abs(got - want).max() <= share * np.abs(want).max(), name
