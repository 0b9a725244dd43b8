"""Grouped int8 convolutions with fewer groups: the same numbers in onnxruntime, and which are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export import ort, quantize
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.export.widegroups import fewer_groups, widen_groups
from edgeprune.graph.capture import capture


def quantized_convolution(shape: tuple[int, ...], n_groups: int, zero_point: int = 0, readers: int = 1) -> bytes:
    """A file with a grouped convolution of int8 weights, as onnxruntime's tools write it; all outputs together."""
    rng = np.random.default_rng(0)
    stored = {
        "w": rng.integers(-127, 128, shape, np.int8),
        "scale": rng.uniform(0.01, 0.1, shape[0]).astype(np.float32),
        "zero": np.full(shape[0], zero_point, np.int8),
        "x_scale": np.float32(0.05),
        "x_zero": np.uint8(128),
    }
    convolutions = [
        helper.make_node("Conv", ["x_real", "w_real"], [f"y{k}"], group=n_groups, pads=[1, 1, 1, 1])
        for k in range(readers)
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "x_scale", "x_zero"], ["x_real"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w_real"], axis=0),
        *convolutions,
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, n_groups * shape[1], 5, 5])],
        [
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["n", "c", "h", "w"])
            for node in convolutions
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def widened(content: bytes) -> onnx.ModelProto:
    model = onnx.load_from_string(content)
    widen_groups(model.graph)
    onnx.checker.check_model(model)
    return model


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def groups_of(model: onnx.ModelProto) -> list[int]:
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [next((a.i for a in node.attribute if a.name == "group"), 1) for node in convolutions]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_fewer_groups_give_the_same_numbers(n_groups: int, width_in: int, width_out: int) -> None:
    shape = (n_groups * width_out, width_in, 3, 3)
    content = quantized_convolution(shape, n_groups)
    model = widened(content)
    (got,) = groups_of(model)
    assert got == fewer_groups(n_groups, shape) and n_groups % got == 0
    x = np.random.default_rng(1).standard_normal((1, n_groups * width_in, 5, 5)).astype(np.float32)
    want, found = (run(file, x) for file in (content, model.SerializeToString()))
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("shape", "n_groups", "expected"),
    [
        ((32, 8, 3, 3), 4, 1),  # RegNet's first stage
        ((448, 8, 3, 3), 56, 14),
        ((104, 8, 3, 3), 13, 1),  # a prime number of groups: all or none
        ((1024, 32, 3, 3), 32, 32),  # ResNeXt's last stage is wide enough
        ((48, 1, 3, 3), 48, 48),  # depthwise
        ((96, 1, 3, 3), 48, 2),  # two outputs for each channel: no kernel for that
        ((64, 64, 3, 3), 1, 1),
    ],
)
def test_number_of_groups(shape: tuple[int, ...], n_groups: int, expected: int) -> None:
    assert fewer_groups(n_groups, shape) == expected
    assert groups_of(widened(quantized_convolution(shape, n_groups))) == [expected]


def test_weights_that_cannot_be_joined_stay() -> None:
    assert groups_of(widened(quantized_convolution((8, 2, 3, 3), 4, zero_point=3))) == [4]
    assert groups_of(widened(quantized_convolution((8, 2, 3, 3), 4, readers=2))) == [4, 4]


def test_quantized_network_has_wide_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1, groups=8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1, groups=32),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 64, 5),
    ).eval()
    x = torch.randn(32, 3, 8, 8)
    source = tmp_path / "float.onnx"
    export_onnx(capture(net, x[:2]), source, inputs=x.numpy())
    wide = write_int8(source, tmp_path / "wide.onnx", x.numpy(), max_drop=100)
    assert groups_of(onnx.load(wide.path)) == [1, 1, 32]
    assert groups_of(onnx.load(source)) == [1, 8, 32]
    monkeypatch.setattr(quantize, "widen_groups", lambda graph: None)
    narrow = write_int8(source, tmp_path / "narrow.onnx", x.numpy(), max_drop=100)
    same = (ort.run(ort.session(Path(file.path)), x.numpy()) for file in (wide, narrow))
    np.testing.assert_array_equal(*same)
