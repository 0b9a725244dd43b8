"""Outputs that are parts of one call: the slim program differs from the dense one in nothing but sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.formats.pt2 import read_program, write_program
from edgeprune.graph.capture import Program
from tests.nets import Net, cut_randomly, randomized


def image(parts: Callable[[Tensor], Any]) -> nn.Module:
    """Convolution, batch norm, convolution; `parts` takes its six channels apart."""
    return Net(
        lambda m, x: parts(m.head(m.norm(m.conv(x)).relu())),
        conv=nn.Conv2d(3, 16, 1),
        norm=nn.BatchNorm2d(16),
        head=nn.Conv2d(16, 6, 1),
    )


def sequence(recurrent: nn.Module, parts: Callable[[Any], Any]) -> nn.Module:
    return Net(
        lambda m, x: parts(m.recurrent(m.norm(m.conv(x)).relu().transpose(1, 2))),
        conv=nn.Conv1d(3, 16, 1),
        norm=nn.BatchNorm1d(16),
        recurrent=recurrent,
    )


def box_and_class(y: Tensor) -> dict[str, Any]:
    box, score = y.flatten(2).split((4, 2), 1)
    return {"best": score.max(1), "box": box, "all": [y, box]}


IMAGE, SEQUENCE = (2, 3, 4, 4), (2, 3, 9)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "split": (lambda: image(lambda y: y.split((4, 2), 1)), IMAGE),
    "max": (lambda: image(lambda y: y.flatten(2).max(2)), IMAGE),
    "topk": (lambda: image(lambda y: y.flatten(1).topk(5)), IMAGE),
    "a tree": (lambda: image(box_and_class), IMAGE),
    "lstm state": (lambda: sequence(nn.LSTM(16, 12, batch_first=True), lambda r: r[1]), SEQUENCE),
    "attention weights": (
        lambda: Net(
            lambda m, x: m.attention(y := m.norm(m.conv(x)).relu().transpose(1, 2), y, y),
            conv=nn.Conv1d(3, 16, 1),
            norm=nn.BatchNorm1d(16),
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
        ),
        SEQUENCE,
    ),
    "batch norm without statistics": (
        lambda: Net(
            lambda m, x: m.head(m.norm(m.conv(x)).relu()).split((4, 2), 1),
            conv=nn.Conv2d(3, 16, 1),
            norm=nn.BatchNorm2d(16, track_running_stats=False),
            head=nn.Conv2d(16, 6, 1),
        ),
        IMAGE,
    ),
}
WITH_FILES = ("a tree", "lstm state")


def cut(name: str) -> tuple[Program, Program]:
    build, shape = NETS[name]
    program = edgeprune.capture(randomized(build()), torch.randn(shape))
    return program, cut_randomly(program, edgeprune.analyze(program)).slim


def without_sizes(program: ExportedProgram) -> dict[str, Any]:
    """All that is said of a program but for sizes, and for parts of a call that nothing reads."""
    nodes = [node for node in program.graph.nodes if node.op != "call_function" or node.users]
    return {
        "inputs": [(spec.kind, spec.arg, spec.target, spec.persistent) for spec in program.graph_signature.input_specs],
        "outputs": program.graph_signature.output_specs,
        "calls": program.module_call_graph,
        "nodes": [(node.op, node.name, str(node.target), sorted(node.meta)) for node in nodes],
        "ranges": {str(symbol): str(values) for symbol, values in program.range_constraints.items()},
        "tensors": [(name, tensor.dtype, type(tensor)) for name, tensor in program.state_dict.items()],
        "constants": sorted(program.constants),
        "graph": sorted(program.graph_module.meta),
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_slim_differs_from_dense_in_nothing_but_sizes(name: str) -> None:
    dense, slim = cut(name)
    assert without_sizes(slim) == without_sizes(dense)
    for node in slim.graph.nodes:
        if "tensor_meta" in node.meta:
            assert node.meta["tensor_meta"].shape == node.meta["val"].shape, node.name
    x = torch.randn(3, *NETS[name][1][1:])
    loaded = Program.adopt(read_program(write_program(slim, {}))[0])
    for program in (slim, loaded):  # PyTorch takes it apart as it takes an export
        got = tree_leaves(program.run_decompositions({}).module()(x))
        torch.testing.assert_close(got, tree_leaves(slim.module()(x)))


@pytest.mark.parametrize("name", WITH_FILES)
def test_slim_exports_as_dense_does(name: str, tmp_path: Path) -> None:
    _, slim = cut(name)
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx", simplify=False).parity < 1e-5


def test_a_file_that_names_values_of_the_whole_is_read_without_them() -> None:
    """As edgeprune 0.1 wrote them: an edit of the graph renames its values, and PyTorch does not follow there."""
    _, slim = cut("split")
    slim.module_call_graph[0].signature.outputs = [spec.arg for spec in slim.graph_signature.output_specs]
    loaded, _ = read_program(write_program(slim, {}))
    assert loaded.module_call_graph[0].signature.outputs == []
    assert len(loaded.run_decompositions({}).graph_signature.user_outputs) == 2
