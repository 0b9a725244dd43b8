"""ONNX with a fixed batch: real files in onnxruntime, before and after."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeprune.errors import InputError, ParityError
from edgeprune.export.fixed import with_fixed_batch, write_fixed_batch
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.graph.capture import capture


class Tokens(nn.Module):
    """Patches with a class token in front, as in a ViT: its graph computes shapes from the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        return self.head(torch.softmax(x @ x.transpose(1, 2), -1) @ x)[:, 0]


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a free batch that has metadata."""
    path = tmp_path_factory.mktemp("fixed") / "free.onnx"
    export_onnx(capture(Tokens(), torch.randn(2, 4, 6)), path, metadata={"edgeprune.contract": "full"})
    return path


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((10, 4, 6), dtype=np.float32)


def shapes(proto: onnx.ModelProto) -> list[list[int | str]]:
    values = (*proto.graph.input, *proto.graph.output)
    return [[dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in values]


def run(path: Path, array: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": array})[0]


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    output: list[int | str],
    **held: list[int],
) -> Path:
    """A hand-made file with the output `y`; `held` are its int64 constants."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    constants = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "g", values, [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def reshaped(path: Path, target: tuple[int, ...]) -> Path:
    """A file with a free batch by its word alone: it reshapes to fixed sizes."""
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["y"])]
    return write(path, nodes, {"input": ["batch", 4]}, ["n", 4], shape=list(target))


@pytest.mark.parametrize("batch", [1, 4])
def test_the_fixed_file_gives_what_the_free_one_gives(free: Path, rows: np.ndarray, batch: int, tmp_path: Path) -> None:
    out = tmp_path / "fixed.onnx"
    done = write_fixed_batch(free, out, batch, rows)
    proto = onnx.load(out)
    assert shapes(proto) == [[batch, 4, 6], [batch, 3]]
    assert done.path == str(out) and done.size_bytes == out.stat().st_size and done.parity is not None
    assert done.parity <= 1e-6
    np.testing.assert_allclose(run(out, rows[:batch]), run(free, rows[:batch]), atol=1e-6)
    with pytest.raises(Exception, match="Got: 3 Expected"):
        run(out, rows[:3])
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"edgeprune.contract": "full"}
    assert os.listdir(tmp_path) == ["fixed.onnx"]


def test_shapes_that_the_graph_computed_are_folded(free: Path, tmp_path: Path) -> None:
    write_fixed_batch(free, tmp_path / "fixed.onnx", 1)
    before, after = ([node.op_type for node in onnx.load(p).graph.node] for p in (free, tmp_path / "fixed.onnx"))
    assert {"Shape", "Expand"} <= set(before) and not {"Shape", "Expand"} & set(after)
    assert not onnx.load(tmp_path / "fixed.onnx").graph.value_info


def test_the_source_may_be_replaced_and_a_graph_is_left_as_it_was(free: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(free.read_bytes())
    write_fixed_batch(path, path, 2)
    assert shapes(onnx.load(path)) == [[2, 4, 6], [2, 3]]
    proto = onnx.load(free)
    untouched = proto.SerializeToString(deterministic=True)
    assert shapes(with_fixed_batch(proto, 1)) == [[1, 4, 6], [1, 3]]
    assert proto.SerializeToString(deterministic=True) == untouched
    assert shapes(with_fixed_batch(onnx.load(path), 2)) == [[2, 4, 6], [2, 3]]


def test_two_inputs_and_a_size_that_stays_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["right", "axis"], ["mean"], keepdims=1),
        helper.make_node("Add", ["left", "mean"], ["y"]),
    ]
    sizes: dict[str, list[int | str]] = {"left": ["batch", 5], "right": ["batch", "length"]}
    source = write(tmp_path / "free.onnx", nodes, sizes, ["batch", 5], axis=[1])
    inputs = [np.ones((3, 5), np.float32), np.ones((3, 9), np.float32)]
    done = write_fixed_batch(source, tmp_path / "fixed.onnx", 2, inputs)
    assert shapes(onnx.load(tmp_path / "fixed.onnx")) == [[2, 5], [2, "length"], [2, 5]] and done.parity == 0
    with pytest.raises(InputError, match="inputs to check on are needed"):
        write_fixed_batch(source, tmp_path / "other.onnx", 2)
    assert not (tmp_path / "other.onnx").exists()


def relu(path: Path, says: str) -> Path:
    """An operator over images of free height and width, and what the file says of its input."""
    sizes: list[int | str] = ["batch", 3, "height", "width"]
    proto = onnx.load(write(path, [helper.make_node("Relu", ["input"], ["y"])], {"input": sizes}, sizes))
    helper.set_model_props(proto, {"edgeprune.input_shape": says})
    onnx.save(proto, path)
    return path


def test_a_size_that_is_free_comes_from_what_the_file_says_of_itself(tmp_path: Path) -> None:
    source = relu(tmp_path / "free.onnx", "[3, 8, 8]")
    assert write_fixed_batch(source, tmp_path / "fixed.onnx", 1).parity == 0
    assert shapes(onnx.load(tmp_path / "fixed.onnx")) == 2 * [[1, 3, "height", "width"]]


@pytest.mark.parametrize("batch", [0, -1, 2**40])
def test_a_batch_out_of_range(free: Path, batch: int) -> None:
    with pytest.raises(InputError, match="batch: expected 1 to 65536"):
        with_fixed_batch(onnx.load(free), batch)


def test_another_fixed_batch(free: Path) -> None:
    at_two = with_fixed_batch(onnx.load(free), 2)
    with pytest.raises(InputError, match="to fix it at 1, got a batch fixed at 2"):
        with_fixed_batch(at_two, 1)


def test_a_graph_that_cannot_have_that_batch_is_not_written(tmp_path: Path) -> None:
    source = reshaped(tmp_path / "free.onnx", (2, 4))
    assert write_fixed_batch(source, tmp_path / "two.onnx", 2).parity == 0
    with pytest.raises((InputError, ParityError)):
        write_fixed_batch(source, tmp_path / "three.onnx", 3)
    assert not (tmp_path / "three.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 40], ids=["empty", "text", "bytes"])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.onnx: expected an ONNX file"):
        write_fixed_batch(tmp_path / "x.onnx", tmp_path / "out.onnx", 1)
    with pytest.raises(InputError, match="got nothing there"):
        read_onnx(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="got a folder"):
        read_onnx(tmp_path)
    assert os.listdir(tmp_path) == ["x.onnx"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.touch()
    os.truncate(path, 2**31)  # sparse: takes no disk
    with pytest.raises(InputError, match="expected an ONNX file of at most 2,147,483,647 bytes, got 2,147,483,648"):
        read_onnx(path)


def test_weights_outside_the_file_are_refused(tmp_path: Path) -> None:
    proto = onnx.load(reshaped(tmp_path / "x.onnx", (1, 4)))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="expected all weights in the file, got some in '../../etc/passwd'"):
        read_onnx(tmp_path / "x.onnx")


@pytest.mark.parametrize("text", ["[3, 1e9]", "[999999, 999999]", "no json", "[" * 100_000, "[true, 8, 8]"])
def test_nonsense_that_a_file_says_of_its_input(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inputs to check on are needed"):
        write_fixed_batch(relu(tmp_path / "x.onnx", text), tmp_path / "out.onnx", 1)


@pytest.mark.parametrize("inputs", [np.zeros((2, 4, 5), np.float32), np.zeros((0, 4, 6), np.float32), []])
def test_inputs_that_do_not_fit(free: Path, inputs: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inputs to check on"):
        write_fixed_batch(free, tmp_path / "out.onnx", 1, inputs)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([None, 2**20, 2**20], "too large to draw"),
        ([2**40, 2**40], "got a batch fixed at 1099511627776"),
        ([], "got no input with a batch"),
    ],
    ids=["beyond the memory", "fixed beyond the memory", "a number"],
)
def test_inputs_of_strange_sizes(sizes: list[int | str], said: str, tmp_path: Path) -> None:
    source = write(tmp_path / "x.onnx", [helper.make_node("Relu", ["input"], ["y"])], {"input": sizes}, sizes)
    with pytest.raises(InputError, match=said):
        write_fixed_batch(source, tmp_path / "out.onnx", 1)


def test_a_batch_of_minus_one_is_a_free_one(tmp_path: Path) -> None:
    source = write(tmp_path / "x.onnx", [helper.make_node("Relu", ["input"], ["y"])], {"input": [-1, 4]}, [-1, 4])
    assert shapes(with_fixed_batch(onnx.load(source), 3)) == [[3, 4], [3, 4]]
