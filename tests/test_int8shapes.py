"""int8 convolutions in quicker shapes: the same numbers in onnxruntime, and which are left alone."""

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
from edgeprune.export.int8shapes import fewer_groups, fit_to_kernels
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
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
        helper.make_node("Conv", ["x_real", "w_real"], [f"y{k}"], group=n_groups, pads=[1] * 2 * (len(shape) - 2))
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
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, ["n", n_groups * shape[1], *["h", "w"][: len(shape) - 2]]
            )
        ],
        [
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["n", "c", "y", "x"][: len(shape)])
            for node in convolutions
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def fitted(content: bytes) -> onnx.ModelProto:
    model = onnx.load_from_string(content)
    fit_to_kernels(model)
    onnx.checker.check_model(model)
    return model


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    """What the file means, computed in float: 8-bit kernels saturate on some CPUs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def groups_of(model: onnx.ModelProto) -> list[int]:
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return [next((a.i for a in node.attribute if a.name == "group"), 1) for node in convolutions]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9))
def test_fewer_groups_give_the_same_numbers(n_groups: int, width_in: int, width_out: int) -> None:
    shape = (n_groups * width_out, width_in, 3, 3)
    content = quantized_convolution(shape, n_groups)
    model = fitted(content)
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
    assert groups_of(fitted(quantized_convolution(shape, n_groups))) == [expected]


def test_weights_that_cannot_be_joined_stay() -> None:
    assert groups_of(fitted(quantized_convolution((8, 2, 3, 3), 4, zero_point=3))) == [4]
    assert groups_of(fitted(quantized_convolution((8, 2, 3, 3), 4, readers=2))) == [4, 4]


def inputs_read(model: onnx.ModelProto) -> list[int]:
    """The inputs of each convolution, by its weights."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [stored[sources[node.input[1]]].dims[1] for node in model.graph.node if node.op_type == "Conv"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 3, 3, 3), 4),
        ((32, 1, 7, 7), 4),
        ((16, 6, 3, 3), 8),
        ((16, 4, 3, 3), 4),
        ((8, 3, 3, 3), 3),
        ((16, 3, 3), 4),
    ],
)
def test_channels_of_an_image_come_in_fours(shape: tuple[int, ...], expected: int) -> None:
    content = quantized_convolution(shape, 1)
    model = fitted(content)
    assert inputs_read(model) == [expected]
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 2  # none is left that nothing reads
    x = np.random.default_rng(1).standard_normal((1, shape[1], *[9] * (len(shape) - 2))).astype(np.float32)
    np.testing.assert_allclose(run(model.SerializeToString(), x), run(content, x), rtol=1e-6, atol=1e-4)


class Branches(torch.nn.Module):
    """Two convolutions on one image, a grouped one, a depthwise one, and one inside with six inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(3, 16, 5, padding=2)
        self.grouped, self.depthwise = (torch.nn.Conv2d(32, 32, 3, padding=1, groups=n) for n in (8, 32))
        self.narrow, self.inside = torch.nn.Conv2d(32, 6, 1), torch.nn.Conv2d(6, 16, 3)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.left(x), self.right(x)], 1).relu()
        x = self.depthwise(self.grouped(x).relu()).relu()
        return self.head(self.inside(self.narrow(x).relu()).relu().mean((2, 3)))


def test_quantized_network_keeps_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(32, 3, 8, 8)
    source = tmp_path / "float.onnx"
    export_onnx(capture(Branches().eval(), x[:2]), source, inputs=x.numpy())
    quick = write_int8(source, tmp_path / "quick.onnx", x.numpy(), max_drop=100)
    model = onnx.load(quick.path)
    shapes = sorted(zip(inputs_read(model), groups_of(model), strict=True))
    assert shapes == [(1, 32), (4, 1), (4, 1), (6, 1), (32, 1), (32, 1)]
    monkeypatch.setattr(quantize, "fit_to_kernels", lambda model: None)
    plain = write_int8(source, tmp_path / "plain.onnx", x.numpy(), max_drop=100)
    assert sorted(groups_of(onnx.load(plain.path))) == [1, 1, 1, 1, 8, 32]
    same = (ort.run(ort.session(Path(file.path)), x.numpy()) for file in (quick, plain))
    np.testing.assert_array_equal(*same)
