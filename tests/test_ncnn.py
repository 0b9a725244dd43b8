"""ncnn: real files in its own runtime, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from target_nets import (
    Tagger,
    in_pytorch,
    kept_sensors,
    of_sensors,
    raw_sensors,
    saved_sensors,
    saved_shuffled,
    slim_program,
)
from torch import Tensor, nn

import edgeprune.export.ncnn as target
from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export.ncnn import with_pooled_means, with_slices
from edgeprune.export.targets import targets_of
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportRecord


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    [ncnn] = targets_of(["ncnn"])
    with pytest.raises(InputError, match=r"^ncnn is not installed: pip install 'edgeprune\[ncnn\]'$"):
        ncnn.check_installed()


@pytest.mark.parametrize(
    ("places", "axis", "runs"), [([3, 1, 0, 2, 5, 4], 1, 6), ([1, 2, 3], 1, 1), ([4, 0, 1], 2, 2), ([0, -2, -1], 1, 2)]
)
def test_places_become_slices_that_give_the_same(places: list[int], axis: int, runs: int) -> None:
    held = numpy_helper.from_array(np.array(places), "places")
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", None, None]) for name in "xz")
    nodes = [helper.make_node("Gather", ["x", "places"], ["y"], axis=axis), helper.make_node("Relu", ["y"], ["z"])]
    graph = helper.make_graph(nodes, "g", [x], [z], [held])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    sliced = with_slices(proto)
    assert [node.op_type for node in sliced.graph.node] == [*["Slice"] * runs, "Concat", "Relu"]
    given = {"x": np.random.default_rng(0).standard_normal((2, 6, 5), dtype=np.float32)}
    want, got = (onnxruntime.InferenceSession(one.SerializeToString()).run(None, given)[0] for one in (proto, sliced))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("axis", "keepdims", "is_recurrent"), [(1, 0, True), (-2, 0, True), (1, 0, False), (2, 0, True), (1, 1, True)]
)
def test_means_over_steps_become_pooling_that_gives_the_same(axis: int, keepdims: int, is_recurrent: bool) -> None:
    draws = np.random.default_rng(0)
    held = {"w": draws.normal(size=(1, 20, 3)), "r": draws.normal(size=(1, 20, 5))} if is_recurrent else {}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()]
    tensors += [numpy_helper.from_array(np.array([value]), name) for name, value in (("axes", axis), ("one", 1))]
    nodes = [helper.make_node("ReduceMean", ["h" if is_recurrent else "x0", "axes"], ["z"], keepdims=keepdims)]
    if is_recurrent:
        nodes = [
            helper.make_node("LSTM", ["x0", "w", "r"], ["y"], hidden_size=5),
            helper.make_node("Squeeze", ["y", "one"], ["h"]),
            *nodes,
        ]
    nodes = [helper.make_node("Relu", ["x"], ["x0"]), *nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 7, 3])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [z], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    pooled = with_pooled_means(proto)
    kinds = {node.op_type for node in pooled.graph.node}
    assert ("GlobalAveragePool" in kinds) == (is_recurrent and axis != 2 and not keepdims)
    given = {"x": draws.standard_normal((4, 7, 3), dtype=np.float32)}
    want, got = (onnxruntime.InferenceSession(one.SerializeToString()).run(None, given)[0] for one in (proto, pooled))
    np.testing.assert_allclose(got, want, atol=1e-6)


# --- with the package


@pytest.fixture
def ncnn() -> None:
    for name in ("ncnn", "pnnx"):
        pytest.importorskip(name, reason="edgeprune[ncnn] is not installed")


@pytest.fixture
def shuffled(tmp_path: Path) -> Path:
    return saved_shuffled(tmp_path, (3, 8, 6))


def exported(net: Path, **changes: Any) -> ExportRecord:
    return export(ExportRequest(model=str(net), out=str(net.parent / "out"), targets=("ncnn",), **changes))


def answers(param: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    """By ncnn's own Python interface alone, as pnnx writes it down."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(param)) == 0 and net.load_model(str(param.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    for place, array in enumerate(arrays):
        extractor.input(f"in{place}", ncnn.Mat(array, batch_index=0).clone())
    found = [extractor.extract(f"out{place}") for place in range(param.read_text().count(" out"))]
    assert all(code == 0 for code, _ in found)
    return [mat.numpy(batch_index=0) for _, mat in found]


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
@pytest.mark.parametrize("preprocess", ["apart", "fold"])
def test_a_shuffled_network_gives_what_pytorch_gives(shuffled: Path, preprocess: str) -> None:
    record = exported(shuffled, dense=str(shuffled), preprocess=preprocess)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 6), dtype=np.float32)
    want = in_pytorch(shuffled, (x - 0.5) / 0.25 if preprocess == "fold" else x)
    out = shuffled.parent / "out"
    for a, b in zip(want, answers(out / "net.ncnn.param", x), strict=True):
        np.testing.assert_allclose(b.reshape(a.shape), a, atol=1e-5, rtol=1e-4)
    files = {Path(file.path).name: file for file in record.files}
    assert list(files)[-2:] == ["net.ncnn.param", "net.ncnn.bin"]
    parity = files["net.ncnn.param"].parity
    assert parity is not None and parity <= 1e-4 and files["net.ncnn.param"].ratio is not None
    assert record.targets is not None
    row = record.targets.rows[1]
    assert row.size_bytes == sum((out / name).stat().st_size for name in ("net.ncnn.param", "net.ncnn.bin"))


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
@pytest.mark.parametrize("kind", ["steps", "grid"])
def test_kept_sensors_are_scaled_in_the_file(tmp_path: Path, kind: str) -> None:
    net, raw = saved_sensors(tmp_path, kind), raw_sensors(3, kind)
    exported(net, preprocess="fold")
    got = [answers(tmp_path / "out" / "net.ncnn.param", row[None])[0].reshape(1, 3) for row in kept_sensors(raw)]
    np.testing.assert_allclose(np.concatenate(got), of_sensors(net, raw), atol=1e-5, rtol=1e-4)


class Averaged(nn.Module):
    """The mean over the steps of a recurrent layer."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0].mean(1))


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_mean_over_steps_behind_a_recurrent_layer(cell: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_program(tmp_path / "net.pt2", capture(Averaged(cell).eval(), torch.randn(2, 7, 4)), ModelInfo((7, 4)))
    exported(tmp_path / "net.pt2")
    x = np.random.default_rng(0).standard_normal((1, 7, 4), dtype=np.float32)
    [got] = answers(tmp_path / "out" / "net.ncnn.param", x)
    np.testing.assert_allclose(got.reshape(1, 3), in_pytorch(tmp_path / "net.pt2", x)[0], atol=1e-6, rtol=1e-5)


class Looked(nn.Module):
    """Rows of a table, which pnnx knows in TorchScript alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(self.table(ids)).relu().mean(1))


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
def test_what_it_cannot_read_as_onnx_it_reads_as_torchscript(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_program(tmp_path / "net.pt2", slim_program(Looked(), torch.randint(0, 11, (2, 5))), ModelInfo((5,)))
    exported(tmp_path / "net.pt2")
    ids = np.random.default_rng(0).integers(0, 11, (1, 5))
    [got] = answers(tmp_path / "out" / "net.ncnn.param", ids.astype(np.int32))
    np.testing.assert_allclose(got.reshape(1, 3), in_pytorch(tmp_path / "net.pt2", ids)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
def test_layers_that_ncnn_has_not_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    slim = slim_program(Tagger(), torch.randint(0, 11, (2, 5)), torch.randn(2, 5, 4))
    save_program(tmp_path / "net.pt2", slim, ModelInfo((5,)))
    with pytest.raises(InputError, match=r"^ncnn cannot run net\.ncnn\.param: ncnn has no Gather \(\w+\)$"):
        exported(tmp_path / "net.pt2")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ncnn")
def test_a_wrong_file_and_a_batch_of_several_are_refused(shuffled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="^ncnn takes one sample at a time: expected --batch 1, got 2$"):
        exported(shuffled, batch=2)

    def other(proto: onnx.ModelProto) -> onnx.ModelProto:
        changed = with_slices(proto)
        for tensor in changed.graph.initializer:
            if len(tensor.dims) == 4:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
        return changed

    def untraced(*_: object) -> Path:
        raise InputError("PyTorch cannot trace the network")

    monkeypatch.setattr(target, "with_slices", other)
    monkeypatch.setattr(target, "_traced", untraced)
    said = r"^net\.ncnn\.param in ncnn at batch 1: largest error expected at most \S+, got [\d.e+-]+$"
    with pytest.raises(ParityError, match=said):
        exported(shuffled)
    assert not (shuffled.parent / "out").exists()
