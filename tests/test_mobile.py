"""What phones' accelerators would take, by onnxruntime's own checker, in words."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.mobile import ProviderCheck, check_mobile
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.load import load

MODELS = Path(__file__).parents[1] / "models"
NAMES = ["NNAPI", "CoreML (NeuralNetwork)", "CoreML (MLProgram)"]
_WEIGHT = np.eye(4, dtype=np.float32)


def chain(path: Path, *operators: str, batch: int | str = 1) -> Path:
    """Operators one after the other over `(batch, 4)`; MatMul takes a weight."""
    names = ["input", *(f"h{i}" for i in range(1, len(operators))), "y"]
    nodes = [
        helper.make_node(operator, [a, "w"] if operator == "MatMul" else [a], [b])
        for operator, a, b in zip(operators, names, names[1:], strict=False)
    ]
    return graph(path, nodes, batch)


def graph(path: Path, nodes: list[onnx.NodeProto], batch: int | str = 1, **held: np.ndarray) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("input", "y")]
    constants = [numpy_helper.from_array(value, name) for name, value in {"w": _WEIGHT, **held}.items()]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_network_that_is_taken_whole_once_its_batch_is_fixed(tmp_path: Path) -> None:
    export_onnx(load(MODELS / "digits_cnn.pt").program, tmp_path / "cnn.onnx", simplify=False)
    free = check_mobile(tmp_path / "cnn.onnx")
    assert [check.provider for check in free] == NAMES
    assert all(check.n_taken == 0 and check.n_free == check.n_nodes and check.verdict == "no" for check in free)
    write_fixed_batch(tmp_path / "cnn.onnx", tmp_path / "one.onnx", 1)
    fixed = check_mobile(tmp_path / "one.onnx")
    assert [check.fixed for check in free] == list(fixed)
    nnapi, network, program = fixed
    assert nnapi.words == f"NNAPI takes all {nnapi.n_nodes} nodes in 1 partition: it should work well there"
    assert (nnapi.share, nnapi.verdict, nnapi.fixed) == (1.0, "yes", None) and program.verdict == "yes"
    assert network.unsupported == (("ReduceMean", 1),) and len(network.partitions) == 2
    assert network.words == (
        f"CoreML (NeuralNetwork) takes {network.n_nodes - 1} of {network.n_nodes} nodes in 2 partitions; "
        "ReduceMean (1) stays on the CPU: it may work well there, which only a measurement on the phone tells"
    )
    assert free[0].words == (
        f"NNAPI wants a fixed batch; with --batch 1 it takes all {nnapi.n_nodes} nodes in 1 partition: "
        "it should work well there"
    )
    assert any(caveat.startswith("Conv:") for caveat in nnapi.caveats)
    assert sorted(os.listdir(tmp_path)) == ["cnn.onnx", "one.onnx"]


def test_operators_that_no_accelerator_knows_cut_the_network_in_parts(tmp_path: Path) -> None:
    path = chain(tmp_path / "x.onnx", "Relu", "Softplus", "Relu", "Atan", "Relu", "Softplus", "Relu")
    nnapi = check_mobile(path)[0]
    assert isinstance(nnapi, ProviderCheck)
    assert nnapi.partitions == (1, 1, 1, 1) and nnapi.unsupported == (("Atan", 1), ("Softplus", 2))
    assert nnapi.words == (
        "NNAPI takes 4 of 7 nodes in 4 partitions; Atan (1), Softplus (2) stay on the CPU: "
        "so many copies between it and the CPU cost more than it saves: stay on the CPU"
    )


@pytest.mark.parametrize(
    ("operators", "verdict", "end"),
    [
        (("Relu", "Atan", "Atan"), "no", "that is too little to be worth the copies: stay on the CPU"),
        (("Relu", "Sigmoid", "Atan"), "maybe", "it may work well there, which only a measurement on the phone tells"),
        (("Relu", "Sigmoid", "Tanh"), "yes", "it should work well there"),
        (("Atan",), "no", "that is too little to be worth the copies: stay on the CPU"),
    ],
)
def test_the_verdict_in_words(operators: tuple[str, ...], verdict: str, end: str, tmp_path: Path) -> None:
    nnapi = check_mobile(chain(tmp_path / "x.onnx", *operators))[0]
    assert nnapi.verdict == verdict and nnapi.words.endswith(f": {end}")


def test_nothing_at_all_is_taken(tmp_path: Path) -> None:
    words = check_mobile(chain(tmp_path / "x.onnx", "Atan"))[0].words
    assert words.startswith("NNAPI takes none of 1 node; Atan (1) stays on the CPU: ")


def test_an_optional_input_that_is_left_out_has_no_free_size(tmp_path: Path) -> None:
    nodes = [helper.make_node("Clip", ["input", "", "six"], ["y"])]
    nnapi = check_mobile(graph(tmp_path / "x.onnx", nodes, six=np.asarray(6, np.float32)))[0]
    assert (nnapi.n_free, nnapi.n_taken) == (0, 1)


def test_more_dims_than_coreml_takes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["high"]),
        helper.make_node("Reshape", ["high", "back"], ["y"]),
    ]
    shape, back = np.asarray([1, 1, 2, 1, 2, 1], np.int64), np.asarray([1, 4], np.int64)
    coreml = check_mobile(graph(tmp_path / "x.onnx", nodes, shape=shape, back=back))[1]
    assert coreml.n_rank == 2 and "2 nodes with too many dims stay there" in coreml.words


def test_a_size_that_stays_free(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length"]) for n in ("input", "y")]
    made = helper.make_graph([helper.make_node("Relu", ["input"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "x.onnx")
    nnapi = check_mobile(tmp_path / "x.onnx")[0]
    assert nnapi.fixed is not None and nnapi.fixed.n_free == 1
    assert "with --batch 1 it takes none of 1 node; 1 node with a free size stays there" in nnapi.words


@pytest.mark.parametrize("content", [b"", b"no model"], ids=["empty", "text"])
def test_files_of_another_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.onnx: expected an ONNX file"):
        check_mobile(tmp_path / "x.onnx")


def test_a_file_that_onnxruntime_does_not_load(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx", [helper.make_node("Nonsense", ["input"], ["y"], domain="nobody")])
    with pytest.raises(InputError, match=r"x\.onnx: onnxruntime cannot load it: ") as error:
        check_mobile(path)
    assert "Nonsense" in str(error.value) and "edgeprune-" not in str(error.value)


def test_a_graph_whose_output_is_a_constant(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["w", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    values = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])]
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])]
    made = helper.make_graph(nodes, "g", values, result, [numpy_helper.from_array(_WEIGHT, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "x.onnx")
    with pytest.raises(InputError, match="got a graph whose outputs are constants"):
        check_mobile(tmp_path / "x.onnx")
