"""Choices between graphs (If) in ONNX files: those that sizes decide are taken in, all others are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Node, judged, model, written
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.formats.load import load

R = np.random.default_rng(0)
LENGTH = [("Shape", "x", "sizes"), ("Gather", "sizes two", "length")]  # that of dim 2


def w(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32) / 2


def branch(nodes: Sequence[Node], weights: dict[str, np.ndarray] | None = None, output: str = "o") -> onnx.GraphProto:
    """A graph for an If, of one output."""
    made = [
        helper.make_node(op, given.split(), out.split(), **(rest[0] if rest else {})) for op, given, out, *rest in nodes
    ]
    held = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    return helper.make_graph(made, "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], held)


def choice(condition: str, given: onnx.GraphProto, other: onnx.GraphProto, out: str = "y") -> Node:
    return ("If", condition, out, {"then_branch": given, "else_branch": other})


def saved(folder: Path, nodes: Sequence[Node], free: bool = True, **weights: Any) -> Path:
    constants = {"two": np.array(2), "five": np.array(5), "w0": w(8, 4, 3), **weights}
    shape: tuple[int | str, ...] = ("n" if free else 1, 4, 7)
    return written(folder / "net.onnx", model(nodes, {"x": shape}, constants))


def is_right(path: Path, n_rows: int = 3) -> None:
    x = np.random.default_rng(1).standard_normal((n_rows, 4, 7)).astype(np.float32)
    got = load(path).program.module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(got, judged(path, [x])[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("op", ["Greater", "Less"])
def test_a_size_decides_and_what_it_chose_is_cut(tmp_path: Path, op: str) -> None:
    """Both branches give their values the same names, and have weights of their own."""
    wide = branch([("Conv", "h w1 b1", "t"), ("Relu", "t", "o")], {"w1": w(6, 8, 7), "b1": w(6)})
    narrow = branch([("Conv", "h w1 b1", "t"), ("Tanh", "t", "o")], {"w1": w(6, 8, 7), "b1": w(6)})
    path = saved(
        tmp_path,
        [("Conv", "x w0", "h"), *LENGTH, (op, "length five", "is"), choice("is", wide, narrow, "v"),
         ("Squeeze", "v axes", "flat"), ("MatMul", "flat w2", "y")],
        axes=np.array([2]), w2=w(6, 3), w0=w(8, 4, 1),
    )  # fmt: skip
    is_right(path)
    program = load(path).program
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5)
    assert edgeprune.prove(program, edgeprune.cut(program, plan, graph), plan) < 1e-9
    assert ("relu" in str(program.graph)) is (op == "Greater")


def test_choices_within_choices(tmp_path: Path) -> None:
    inner: list[Node] = [
        ("Abs", "h", "t"), ("Shape", "t", "sizes_t"), ("Size", "sizes_t", "rank"), ("Equal", "rank three", "same"),
        choice("same", branch([("Neg", "t", "o")]), branch([("Relu", "t", "o")]), "o2"),
    ]  # fmt: skip
    outer = branch(inner, {"three": np.array(3)}, "o2")
    nodes = [("Conv", "x w0", "h"), *LENGTH, ("Equal", "length five", "is")]
    is_right(saved(tmp_path, [*nodes, choice("is", branch([("Exp", "h", "o")]), outer)]))


@pytest.mark.parametrize("free", [True, False])
def test_a_constant_decides(tmp_path: Path, free: bool) -> None:
    """What a branch gives may be what comes from outside, or a constant."""
    path = saved(
        tmp_path,
        [("Conv", "x w0", "h"), choice("yes", branch([("Identity", "h", "o")]), branch([("Neg", "h", "o")]), "v"),
         choice("yes", branch([("Neg", "k", "o")]), branch([("Relu", "k", "o")]), "m"), ("Mul", "v m", "y")],
        free, yes=np.array(True), k=w(8, 1),
    )  # fmt: skip
    is_right(path, 3 if free else 1)


def test_a_weight_that_is_chosen_and_moved_is_trained(tmp_path: Path) -> None:
    given, other = (branch([("Identity", name, "o")]) for name in ("k", "l"))
    path = saved(
        tmp_path,
        [("Conv", "x w0", "h"), ("ReduceMean", "h", "m", {"axes": [2], "keepdims": 0}),
         choice("yes", given, other, "v"), ("Transpose", "v", "t", {"perm": [1, 0]}), ("MatMul", "m t", "y")],
        yes=np.array(True), k=w(3, 8), l=w(3, 8),
    )  # fmt: skip
    is_right(path)
    assert len(list(load(path).program.named_parameters())) == 2


class Squeezed(nn.Module):
    """A squeeze of what may have several steps, which PyTorch's older exporter writes as a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 6, 7), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.conv(x).relu()).squeeze(2))


def test_a_squeeze_of_the_older_exporter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Squeezed().eval()
    torch.onnx.export(
        torch.jit.script(net), (torch.randn(2, 4, 7),), tmp_path / "net.onnx", dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "n", 2: "steps"}},
    )  # fmt: skip
    assert "If" in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    program = load(tmp_path / "net.onnx", input_shape=(4, 7)).program
    x = torch.randn(5, 4, 7)
    torch.testing.assert_close(program.module()(x), net(x))
    assert {name for name, _ in program.named_parameters()} == {name for name, _ in net.named_parameters()}


BAD = {
    "data": (
        [("Conv", "x w0", "h"), ("ReduceMax", "h", "most", {"keepdims": 0}), ("Greater", "most zero", "is"),
         choice("is", branch([("Relu", "h", "o")]), branch([("Neg", "h", "o")]))],
        r"node 'n3' \(If\): expected one graph that always runs, got a choice between graphs that is made as it runs",
    ),
    "batch": (
        [("Shape", "x", "sizes"), ("Gather", "sizes none", "n"), ("Greater", "n two", "is"),
         choice("is", branch([("Relu", "x", "o")]), branch([("Neg", "x", "o")]))],
        r"node 'n3' \(If\): expected one graph that always runs, got a choice",
    ),
    "one branch": (
        [("Relu", "x", "h"), ("If", "yes", "y", {"then_branch": branch([("Relu", "h", "o")])})],
        r"node 'n1' \(If\): expected a condition and two graphs of 1 outputs, got others",
    ),
    "unknown": (
        [choice("yes", branch([("NonZero", "x", "o")]), branch([("Relu", "x", "o")]))],
        r"\(NonZero\): expected an operator that edgeprune knows",
    ),
    "quantised": (
        [choice("yes", branch([("DequantizeLinear", "q s", "o")]), branch([("Relu", "x", "o")]))],
        r"\(DequantizeLinear\): expected a float network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_taken_in_is_refused(tmp_path: Path, name: str) -> None:
    nodes, told = BAD[name]
    numbers = {"zero": np.float32(0), "none": np.array(0), "two": np.array(2), "yes": np.array(True)}
    constants = {**numbers, "w0": w(8, 4, 3)}
    onnx.save(model(nodes, {"x": ("n", 4, 7)}, constants), tmp_path / "net.onnx")
    with pytest.raises(InputError, match=rf"net\.onnx: .*{told}") as caught:
        load(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
