"""Names of inputs: what Python knows as something else, whose copies fx calls otherwise, capitals, names of outputs."""

from __future__ import annotations

import inspect
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.commands.export import export
from edgeprune.errors import CaptureError
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest

NAMES = [
    ("input", "max"), ("x", "input"), ("input_1", "input"), ("input",), ("filter",),
    ("Time", "Sensor"), ("x", "X"), ("Time", "time"), ("Image",),
]  # fmt: skip


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


class Made(nn.Module):
    """Makes a tensor where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def run(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * torch.linspace(0, 1, 8, device=x.device)) + bias


def test_a_name_that_hides_what_the_graph_reads_is_refused() -> None:
    for name in ("device", "torch"):
        with pytest.raises(CaptureError, match=rf"^input '{name}': expected another name, .* rename the argument"):
            edgeprune.capture(named(Made(), ("x", name)), (torch.randn(2, 4), torch.randn(2, 1)))
    edgeprune.capture(named(Shuffled(), ("x", "device")), (torch.randn(2, 4, 4, 4), torch.randn(2, 8)))


class Many(nn.Module):
    """Outputs by a name each, or in a row."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__()
        self.keys, self.a = keys, nn.Linear(4, 3)

    def run(self, x: Tensor, bias: Tensor) -> object:
        y = self.a(x).relu() + bias[:, :1]
        if not self.keys:
            return y, y + 1
        return {key: y + k for k, key in enumerate(self.keys)} if len(self.keys) > 1 else y


@pytest.mark.parametrize(
    ("names", "keys", "wanted"),
    [
        (("features", "logits"), ("y",), ["output_logits"]),
        (("output_0", "output_1"), (), ["output_output_0", "output_output_1"]),
        (("x", "y"), ("x", "output_x"), ["x_2", "output_x"]),
        (("x", "y"), ("a", "y"), ["a", "output_y"]),
    ],
)
def test_no_output_is_called_as_an_input_is(
    names: tuple[str, ...], keys: tuple[str, ...], wanted: list[str], tmp_path: Path
) -> None:
    net = named(Many(keys), names)
    program = edgeprune.capture(net, (torch.randn(2, 4), torch.randn(2, 8)))
    edgeprune.export_onnx(program, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert [value.name for value in graph.output] == wanted
    assert [value.name for value in graph.input] == list(names)
