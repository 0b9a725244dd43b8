"""What phones' accelerators would take, by each one's own checker, in words."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeprune.errors import InputError
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.mobile import qnn
from edgeprune.export.mobile.litert import GpuCheck, LitertCheck
from edgeprune.export.mobile.litert import checked as checked_litert
from edgeprune.export.mobile.places import Operator, fingerprint, layer_with, named, places
from edgeprune.export.mobile.providers import ProviderCheck, as_the_phone_sees_it, check_mobile
from edgeprune.export.mobile.qnn import checked as checked_qnn
from edgeprune.export.mobile.report import Network, phones
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.load import load
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent

MODELS = Path(__file__).parents[1] / "models"
NNAPI = "NNAPI (legacy: deprecated since Android 15)"
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
    assert nnapi.words == f"{NNAPI} takes all {nnapi.n_nodes} nodes in 1 partition: it should work well there"
    assert (nnapi.share, nnapi.verdict, nnapi.fixed) == (1.0, "yes", None) and program.verdict == "yes"
    assert network.unsupported == (("ReduceMean", 1),) and len(network.partitions) == 2
    assert network.words == (
        f"CoreML (NeuralNetwork) takes {network.n_nodes - 1} of {network.n_nodes} nodes in 2 partitions; "
        "ReduceMean (1: after 7.conv2) stays on the CPU: it may work well there, which only a measurement on the phone "
        "tells"
    )
    assert free[0].words == (
        f"{NNAPI} wants a fixed batch; with --batch 1 it takes all {nnapi.n_nodes} nodes in 1 partition: "
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
        f"{NNAPI} takes 4 of 7 nodes in 4 partitions; Atan (1), Softplus (2) stay on the CPU: "
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
    assert words.startswith(f"{NNAPI} takes none of 1 node; Atan (1) stays on the CPU: ")


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


# -- layers ----------------------------------------------------------------------------------------------------------


def test_where_an_operator_stands() -> None:
    operators = [
        Operator("Cast", ("x",), ("a",)),
        Operator("Conv", ("a", "w"), ("b",), "stem"),
        Operator("Gelu", ("b",), ("c",)),
        Operator("Erf", ("y",), ("d",)),
        Operator("Add", ("d", "c"), ("e",)),
        Operator("Conv", ("e", "v"), ("f",), "head"),
    ]
    assert places(operators) == ["", "stem", "after stem", "", "after stem", "head"]
    found = [("Gelu", "after a"), ("Erf", ""), ("Gelu", "after b"), ("Gelu", "after c"), ("Gelu", "after d")]
    assert named(found) == "Erf (1), Gelu (4: after a, after b, after c and 1 more)"


def test_layers_of_an_onnx_file_by_their_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "block.0.fc.weight"], ["a"]),
        helper.make_node("Softplus", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    path = graph(tmp_path / "x.onnx", nodes, **{"block.0.fc.weight": _WEIGHT})
    nnapi = check_mobile(path)[0]
    assert nnapi.where == (("Softplus", "after block.0.fc"),)
    assert "Softplus (1: after block.0.fc) stays on the CPU" in nnapi.words


def test_layers_are_known_by_their_weights_in_any_order() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3, 2)).astype(np.float32), rng.normal(size=(4, 6)).astype(np.float32)
    known = {"stem.weight": fingerprint(first), "head.weight": fingerprint(second), "a.bias": fingerprint(np.zeros(4))}
    assert layer_with(fingerprint(first.transpose(0, 2, 1)), known) == "stem"
    assert layer_with(fingerprint(second * np.float32(1 + 3e-7)), known) == "head"
    assert layer_with(fingerprint(second * 1.001), known) == ""
    assert layer_with(fingerprint(np.zeros(4)), known) == ""
    assert layer_with(fingerprint(first), {**known, "other.weight": fingerprint(-first)}) == ""


# -- LiteRT and QNN: of what their processes say -----------------------------------------------------------------------

_ANALYSIS = """Subgraph#0 main(T#0) -> [T#4]
  Op#0 CONV_2D(T#0, T#9, T#8) -> [T#1]
  Op#1 CUMSUM(T#1, T#7[2]) -> [T#2]
  Op#2 CONV_2D(T#2, T#6, T#5) -> [T#3]
  Op#3 MUL(T#3, T#3) -> [T#4]

Your model looks compatible with GPU delegate on TFLite runtime version 2.22.0-dev0+selfbuilt.
"""
_WARNED = (
    _ANALYSIS.replace("-> [T#2]\n", "-> [T#2]\nGPU COMPATIBILITY WARNING: Not supported op CUMSUM\n").partition(
        "Your model"
    )[0]
    + "GPU COMPATIBILITY WARNING: Subgraph#0 has GPU delegate compatibility issues at nodes 1\n"
)


def litert(**changes: Any) -> LitertCheck:
    rng = np.random.default_rng(0)
    stem, head = rng.normal(size=(2, 3)), rng.normal(size=(3, 3))
    operators = [
        ("CONV_2D", [0, 9, 8], [1]),
        ("CUMSUM", [1, 7], [2]),
        ("CONV_2D", [2, 6, 5], [3]),
        ("MUL", [3, 3], [4]),
    ]
    delegates = [("DELEGATE", [0, 9, 8], [1]), ("DELEGATE", [2, 6, 5], [4])]
    kinds = ("kind", "inputs", "outputs")
    found = {
        "version": "2.3.0",
        "operators": [dict(zip(kinds, one, strict=True)) for one in operators],
        "delegates": [dict(zip(kinds, one, strict=True)) for one in delegates],
        "constants": {"9": list(fingerprint(stem)), "6": list(fingerprint(head))},
        "analyses": [_ANALYSIS, _ANALYSIS],
        **changes,
    }
    return checked_litert(found, {"stem.weight": fingerprint(stem), "head.weight": fingerprint(head)})


def test_what_xnnpack_takes() -> None:
    check = litert()
    assert check.left == (("CUMSUM", "after stem"),) and check.n_parts == 2
    assert check.words[0] == (
        "LiteRT's XNNPACK takes 3 of 4 operators in 2 parts, as LiteRT 2.3.0 runs it here; CUMSUM (1: after stem) "
        "stays on LiteRT's own kernels"
    )
    assert litert(delegates=[]).words[0].startswith("LiteRT's XNNPACK takes none of 4 operators, as LiteRT")


def test_an_analyzer_that_refuses_nothing_is_no_checker() -> None:
    assert litert().gpu is None
    assert (
        litert().words[1].startswith("LiteRT's GPU delegate: no checker on this machine: the analyzer of LiteRT 2.3.0")
    )
    assert litert(analyses=["", _WARNED]).gpu is None  # one that says nothing of this file is none either


def test_an_analyzer_that_does() -> None:
    check = litert(analyses=[_WARNED, _WARNED])
    assert check.gpu == GpuCheck((("CUMSUM", "after stem"),), ("Not supported op CUMSUM",))
    assert check.words[1] == (
        "LiteRT's GPU delegate would take 3 of 4 operators, by the analyzer of LiteRT 2.3.0, which asks no "
        "GPU; CUMSUM (1: after stem) stays on the CPU (Not supported op CUMSUM)"
    )
    assert "take all 4 operators" in litert(analyses=[_ANALYSIS, _WARNED]).words[1]


def test_what_qnn_takes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "fc.weight"], ["a"], name="one"),
        helper.make_node("Atan", ["a"], ["y"], name="two"),
    ]
    proto = onnx.load(graph(tmp_path / "x.onnx", nodes, **{"fc.weight": _WEIGHT}))
    parts = [{"qnn": True, "nodes": [["one", "MatMul"]]}, {"qnn": False, "nodes": [["two_token_7", "Atan"]]}]
    check = checked_qnn({"version": "2.7.0", "parts": parts}, proto.graph)
    assert check.words == (
        "QNN takes 1 of 2 nodes in 1 part, as onnxruntime-qnn 2.7.0 gives them to its Hexagon, without a phone; "
        "Atan (1: after fc) stays on the CPU"
    )
    assert "takes all 1 node in 1 part" in checked_qnn({"version": "2.7.0", "parts": parts[:1]}, proto.graph).words


def test_a_checker_that_is_missing_or_fails_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(qnn, "is_installed", lambda: False)
    path = chain(tmp_path / "x.onnx", "Relu", "Atan")
    lines = phones(Network(path, cast(Any, None)), Silent())
    assert [line.partition(":")[0].partition(" (")[0] for line in lines] == [
        "LiteRT's XNNPACK and GPU delegates", "CoreML", "CoreML", "Core ML's own packages", "QNN", "NNAPI"
    ]  # fmt: skip
    assert "no checker on this machine: LiteRT is not installed: pip install 'edgeprune[litert]'" in lines[0]
    assert "no checker on this machine" in lines[3] and "no checker on this machine: pip install 'edge" in lines[4]
    monkeypatch.setattr(qnn, "is_installed", lambda: True)

    def fails(*_: object) -> None:
        raise InputError("QNN cannot check x.onnx: its process crashed (SIGSEGV)")

    monkeypatch.setattr(qnn, "check_qnn", fails)
    told = phones(Network(path, cast(Any, None)), Silent())[4]
    assert told == "QNN: not checked: QNN cannot check x.onnx: its process crashed (SIGSEGV)"


# -- with the packages -------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Two layers, and between them what neither XNNPACK nor a GPU has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(torch.cumsum(self.stem(x), dim=1)).mean((2, 3))


@pytest.mark.slow
def test_litert_itself(tmp_path: Path) -> None:
    pytest.importorskip("litert_converter", reason="edgeprune[litert] is not installed")
    pytest.importorskip("ai_edge_litert", reason="edgeprune[litert] is not installed")
    torch.manual_seed(0)
    program = capture(Odd().eval(), (torch.randn(2, 3, 8, 8),))
    export_onnx(program, tmp_path / "odd.onnx")
    xnnpack, gpu, *_ = phones(Network(tmp_path / "odd.onnx", program), Silent())
    assert "in 2 parts, as LiteRT" in xnnpack and "CUMSUM (1: after stem.0) stays on LiteRT's own kernels" in xnnpack
    assert "no checker on this machine" in gpu or "CUMSUM (1: after stem.0)" in gpu


@pytest.mark.slow
def test_qnn_itself(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    export_onnx(load(MODELS / "digits_cnn.pt").program, tmp_path / "cnn.onnx")
    check = qnn.check_qnn(as_the_phone_sees_it(tmp_path / "cnn.onnx"), "cnn.onnx")
    assert check.n_taken > 10 and check.left == () and check.n_parts == 1
