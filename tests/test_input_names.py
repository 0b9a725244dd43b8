"""Inputs that are called as Python calls something of its own, `input` or `max`: fx gives their copies other names."""

from __future__ import annotations

import inspect
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.commands.export import export
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest

NAMES = [("input", "max"), ("x", "input"), ("input_1", "input"), ("input",), ("filter",)]


class Shuffled(nn.Module):
    """A channel shuffle by hand, which an analysis sees as one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def run(self, x: Tensor, bias: Tensor) -> Tensor:
        h = self.stem(x).relu()
        n, c, height, width = h.shape
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
        return self.head(self.deep(h).relu().mean((2, 3)) + bias[:, :1])


class Written(Shuffled):
    """A channel that is written to."""

    def run(self, x: Tensor, bias: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h[:, 0] = 0.5
        return self.head((self.deep(h).relu() + bias[:, :1, None, None]).mean((2, 3)))


class Stacked(nn.Module):
    """Two recurrent layers in one call, each of which gets its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 8, 2, batch_first=True), nn.Linear(8, 3)

    def run(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(2))[0].mean(1) + bias[:, :1])


def named(net: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The network with its one or two inputs called so."""

    def forward(self: nn.Module, *inputs: Tensor) -> Tensor:
        x, bias = inputs if len(inputs) == 2 else (inputs[0], torch.ones(1, 1))
        return self.run(x, bias)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])  # type: ignore[attr-defined]
    net.__class__ = type("Named", (type(net),), {"forward": forward})
    return net.eval()


@pytest.mark.parametrize("names", NAMES, ids="-".join)
@pytest.mark.parametrize("kind", [Shuffled, Written, Stacked])
def test_inputs_keep_their_names(kind: type[nn.Module], names: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = named(kind(), names)
    inputs = (torch.randn(2, 4, 4, 4), torch.randn(2, 8))[: len(names)]
    program = edgeprune.capture(net, inputs[0] if len(inputs) == 1 else inputs)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.6)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) < 1e-6
    save_program(tmp_path / "slim.pt2", slim, ModelInfo(tuple(inputs[0].shape[1:])))
    read = load(tmp_path / "slim.pt2").program
    assert read.graph_signature.user_inputs == program.graph_signature.user_inputs == names
    torch.testing.assert_close(read.module()(*inputs), slim.module()(*inputs))
    again = edgeprune.analyze(read)
    assert edgeprune.cut(read, edgeprune.plan(read, again, keep_macs=0.8), again).graph_signature.user_inputs == names
    export(ExportRequest(model=str(tmp_path / "slim.pt2"), out=str(tmp_path / "out")))
    written = onnx.load(tmp_path / "out" / "slim.onnx").graph.input
    assert [value.name for value in written] == (list(names) if len(names) == 2 else ["input"])
