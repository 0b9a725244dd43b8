"""Tensors whose names a graph's module or a file has taken, and outputs that are parameters, inputs or numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import CaptureError
from edgeprune.formats.load import load
from edgeprune.formats.pt2 import read_program, write_program
from edgeprune.graph.capture import Program
from edgeprune.graph.renaming import own_name
from tests.nets import Net, cut_randomly, randomized
from tests.onnx_nets import model, written


def with_parts(**parts: Any) -> nn.Module:
    """`first`, then the part that is a module, times the one that is a tensor, then `last`."""
    module = next(name for name, part in parts.items() if isinstance(part, nn.Module))
    scale = next(name for name, part in parts.items() if isinstance(part, Tensor))
    return Net(
        lambda m, x: m.last(m._modules[module](m.first(x)).relu() * {**m._parameters, **m._buffers}[scale]),
        first=nn.Linear(4, 16),
        last=nn.Linear(16, 3),
        **parts,
    )


@pytest.mark.parametrize(
    ("names", "buffer"),
    [
        (("meta", "code"), False), (("graph", "meta_"), True), (("code", "graph"), True), (("meta_", "meta"), False),
        (("in", "lambda"), False), (("class_", "class"), True),
    ],
)  # fmt: skip
def test_names_that_a_graphs_module_has_taken(names: tuple[str, str], buffer: bool) -> None:
    layer, scale = names
    tensor = torch.rand(16) if buffer else nn.Parameter(torch.rand(16))
    net = randomized(with_parts(**{layer: nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)), scale: tensor}))
    program = edgeprune.capture(net, torch.randn(2, 4))
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    loaded = Program.adopt(read_program(write_program(slim, {}))[0])
    x = torch.randn(3, 4)
    torch.testing.assert_close(loaded.module().train().eval()(x), slim.module()(x))
    assert {own_name(name) for name in program.state_dict} == set(net.state_dict())
    assert f"{layer}.0.weight" in slim.apply_to(net).tensors
    torch.testing.assert_close(net.eval()(x), slim.module()(x))


def test_layers_may_be_called_as_words_of_python_anywhere() -> None:
    parts = nn.ModuleDict({"from": nn.Linear(4, 16), "from_": nn.Linear(16, 16), "else": nn.Linear(16, 3)})
    net = Net(lambda m, x: m.net["else"](m.net["from_"](m.net["from"](x)).relu()), net=parts)
    program = edgeprune.capture(randomized(net), torch.randn(2, 4))
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert {own_name(name) for name in program.state_dict} == set(net.state_dict())
    x = torch.randn(3, 4)
    want = slim.module()(x)
    slim.apply_to(net)
    torch.testing.assert_close(net.eval()(x), want)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_no_code_can_hold_are_refused(name: str) -> None:
    parts = nn.ModuleDict({name: nn.Linear(4, 16)})
    with pytest.raises(CaptureError, match=r"tensor 'net\..*: expected a name of letters"):
        edgeprune.capture(Net(lambda m, x: m.net[name](x), net=parts), torch.randn(2, 4))


@pytest.mark.parametrize("name", ["self", "lambda", "if.weight", "layer.in.weight"])
def test_weights_of_onnx_files_may_have_such_names(name: str, tmp_path: Path) -> None:
    nodes = [("Gemm", f"x {name}", "a", {"transB": 1}), ("Gemm", "a last", "y", {"transB": 1})]
    weights = {name: np.eye(6, 4), "last": np.ones((3, 6))}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ["n", 4]}, weights))
    x = torch.randn(5, 4)
    torch.testing.assert_close(load(str(path)).program.module()(x), x.sum(1, keepdim=True).expand(5, 3))


def test_a_file_of_others_may_have_such_names_too() -> None:
    net = with_parts(meta=nn.Linear(16, 16), code=nn.Parameter(torch.rand(16))).eval()
    exported = torch.export.export(net, (torch.randn(2, 4),))
    program = Program.adopt(read_program(write_program(exported, {}))[0])
    x = torch.randn(2, 4)
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("name", ["input", "logits"])
def test_a_tensor_that_is_called_as_what_goes_in_or_comes_out(name: str, tmp_path: Path) -> None:
    net = with_parts(middle=nn.Linear(16, 16), **{name: nn.Parameter(torch.rand(16))})
    program = edgeprune.capture(randomized(net), torch.randn(2, 4))
    assert edgeprune.export_onnx(program, tmp_path / "net.onnx", simplify=False).parity < 1e-5
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert ([v.name for v in graph.input], [v.name for v in graph.output]) == (["input"], ["logits"])


def scaled_and_clipped(net: Any, x: Tensor) -> Tensor:
    """Bounds of `clamp` are values of the exporter's own, which it numbers."""
    y = net.last(net.first(x).relu())
    for number in range(12):
        y = (y * net.get_parameter(f"val_{number}")).clamp(-9, 9)
    return y


def test_tensors_that_are_called_as_the_exporter_calls_its_values(tmp_path: Path) -> None:
    """So are those of a file that it wrote, once that is read, cut and written again."""
    net = Net(
        scaled_and_clipped,
        first=nn.Linear(4, 16),
        last=nn.Linear(16, 3),
        **{f"val_{number}": nn.Parameter(torch.rand(3)) for number in range(12)},
    )
    program = edgeprune.capture(randomized(net), torch.randn(2, 4))
    for number in range(3):
        path = tmp_path / f"{number}.onnx"
        assert edgeprune.export_onnx(program, path).parity < 1e-5
        read = load(str(path)).program
        program = cut_randomly(read, edgeprune.analyze(read), seed=number).slim


RETURNED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], list[str]]] = {
    "a parameter": (lambda m, x, y: (y, m.extra), ["output_0", "output_1"]),
    "the input": (lambda m, x, y: (x, y), ["output_0", "output_1"]),
    "numbers": (lambda m, x, y: (3, y, None, x.shape[0], 0.5), ["output_1"]),
    "an input's name": (lambda m, x, y: {"input": y, "extra": m.extra}, ["output_input", "extra"]),
}


@pytest.mark.parametrize("what", RETURNED)
def test_what_a_network_returns_beside_its_result(what: str, tmp_path: Path) -> None:
    returned, names = RETURNED[what]
    net = Net(
        lambda m, x: returned(m, x, m.last(m.first(x).relu())),
        first=nn.Linear(4, 16),
        last=nn.Linear(16, 3),
        extra=nn.Parameter(torch.zeros(2)),
    )
    program = edgeprune.capture(randomized(net), torch.randn(2, 4))
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx", simplify=False).parity < 1e-5
    assert [value.name for value in onnx.load(tmp_path / "slim.onnx").graph.output] == names
    assert slim.apply_to(net).tensors
