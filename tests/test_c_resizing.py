"""C for microcontrollers: images resized linearly, and the places of the largest, as onnxruntime has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from test_c import COMPILERS, STRICT, differs, made, written
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.export.c.runtime import Library, compiled

pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")
SHARED = ("-O2", "-fPIC", "-shared")


class Resized(nn.Module):
    """As PyTorch's exporter writes them: images and lines, larger and smaller, by sizes and by factors."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.interpolate(x, scale_factor=2, mode="bilinear")
        b = F.interpolate(x, (7, 12), mode="bilinear", align_corners=True)
        c = F.interpolate(x, (3, 4), mode="bilinear")
        d = F.interpolate(x.flatten(2), 11, mode="linear")
        return torch.cat([a.flatten(1), b.flatten(1), c.flatten(1), d.flatten(1), F.interpolate(c, 1).flatten(1)], 1)


def file_of(node: onnx.NodeProto, held: dict[str, np.ndarray], folder: Path, kind: int, opset: int = 18) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 5, 6))
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph([node], "net", [x], [helper.make_tensor_value_info("y", kind, None)], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "net.onnx")
    return folder / "net.onnx"


def check(path: Path) -> None:
    _, source = written(path)
    compiled(source, path.parent / "strict.so", (*STRICT, *SHARED))
    assert differs(path, source) < 1e-5


def test_what_pytorchs_exporter_writes_is_resized(tmp_path: Path) -> None:
    _, source = made(Resized(), torch.randn(2, 3, 5, 6), tmp_path)
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    assert differs(tmp_path / "net.onnx", source) < 1e-5
    assert len(source.read_text().split("resize_f32(")) > 5


_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


@pytest.mark.parametrize("size", [(9, 4), (1, 13), (5, 6), (3, 1)])
@pytest.mark.parametrize("mode", _MODES)
def test_every_way_to_count_places(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    told = {"mode": "linear", "coordinate_transformation_mode": mode}
    opset = 19 if mode == "half_pixel_symmetric" else 18
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **told)
    check(file_of(node, {"sizes": np.array([1, 2, *size], np.int64)}, tmp_path, TensorProto.FLOAT, opset))


@pytest.mark.parametrize("mode", _MODES[:4])
def test_factors_that_give_no_whole_sizes(mode: str, tmp_path: Path) -> None:
    told = {"mode": "linear", "coordinate_transformation_mode": mode, "axes": [-2, 3]}
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **told)
    check(file_of(node, {"scales": np.array([1.7, 0.75], np.float32)}, tmp_path, TensorProto.FLOAT))


def test_a_resize_of_an_earlier_set_counts_from_the_edge(tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")
    scales = np.array([1, 1, 2.5, 1.5], np.float32)
    check(file_of(node, {"scales": scales}, tmp_path, TensorProto.FLOAT, 10))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"mode": "linear", "antialias": 1}, "with antialias"),
        ({"mode": "cubic"}, "of mode cubic"),
        ({"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, "by half_pixel, not_larger"),
    ],
)
def test_other_ways_to_resize_are_named(told: dict[str, Any], why: str, tmp_path: Path) -> None:
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], axes=[2, 3], **told)
    path = file_of(node, {"sizes": np.array([3, 4], np.int64)}, tmp_path, TensorProto.FLOAT)
    with pytest.raises(InputError, match=rf"^C has no Resize \(\w*\) {why}$"):
        written(path)


# --- places of the largest


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("kind", "axis"), [("ArgMax", 1), ("ArgMax", -1), ("ArgMin", 2)])
def test_the_places_of_the_largest(kind: str, axis: int, keepdims: int, last: int, tmp_path: Path) -> None:
    node = helper.make_node(kind, ["x"], ["y"], axis=axis, keepdims=keepdims, select_last_index=last)
    path = file_of(node, {}, tmp_path, TensorProto.INT64)
    _, source = written(path)
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    session, library, chance = onnxruntime.InferenceSession(path), Library.of(source), np.random.default_rng(0)
    for _ in range(4):
        x = chance.integers(-2, 2, (1, 2, 5, 6)).astype(np.float32)  # many are equally large
        library.fill([x])
        [want], [got] = session.run(None, {"x": x}), library.run()
        assert got.dtype == np.int32 and got.shape == want.shape
        np.testing.assert_array_equal(got, want)


class Labelled(nn.Module):
    """A mask as a segmentation ends with, and a row of a table that is looked up by a place."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Conv2d(3, 4, 1), nn.Embedding(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.interpolate(self.head(x), scale_factor=2, mode="bilinear")
        return scores.argmax(1), self.table(scores.mean((2, 3)).argmax(1))


def test_a_network_that_ends_with_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, source = made(Labelled(), torch.randn(2, 3, 5, 6), tmp_path)
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    session, library = onnxruntime.InferenceSession(tmp_path / "net.onnx"), Library.of(source)
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 6), np.float32)
    library.fill([x])
    (mask, row), (got_mask, got_row) = session.run(None, {session.get_inputs()[0].name: x}), library.run()
    np.testing.assert_array_equal(got_mask, mask)
    np.testing.assert_allclose(got_row, row, atol=1e-6)
