"""A profile of recurrent layers, and what is told of the layers that no profile measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.cost.coverage import check_known, coverage
from edgeprune.cost.device import Device, Point
from edgeprune.cost.layers import LayerShape, layer_shapes
from edgeprune.cost.models import latency_model, macs_model
from edgeprune.errors import InputError
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.probes import probes_of, reference_probes
from edgeprune.formats import architectures
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.planner import plan
from tests.nets import captured

SEQUENCE = (7, 5)
NETS = """
import torch
from torch import nn

class Last(nn.Module):
    def __init__(self, cells, width):
        super().__init__()
        self.cells, self.out = cells, nn.Linear(width, 4)

    def forward(self, x):
        return self.out(self.cells(x)[0].mean(1))

def lstm():
    return Last(nn.LSTM(5, 16, batch_first=True, bidirectional=True), 32)

def rnn():
    return Last(nn.RNN(5, 16, batch_first=True), 16)

def mixed():
    return Last(nn.Sequential(nn.Linear(5, 60), nn.ReLU(), nn.RNN(60, 4, batch_first=True)), 4)

def upwards():
    return nn.Sequential(nn.ConvTranspose2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 2, 3))
"""


class Recurrent(nn.Module):
    """Two directions, two layers in one, one that no file has as an operator, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LSTM(5, 16, batch_first=True, bidirectional=True), nn.GRU(32, 12, 2)
        self.c, self.out = nn.RNN(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.b(self.a(x)[0].transpose(0, 1))[0])[0].mean(0))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(5, 16, batch_first=True, proj_size=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0][:, -1]


def recurrent_of(module: nn.Module) -> tuple[edgeprune.Program, ChannelGraph, list[LayerShape]]:
    program = captured(module, SEQUENCE)
    graph = edgeprune.analyze(program)
    return program, graph, [shape for shape in layer_shapes(graph).values() if shape.kind == "recurrent"]


def test_the_recurrent_layers_of_a_network() -> None:
    _, _, shapes = recurrent_of(Recurrent())
    assert [(shape.key, shape.width_in, shape.width_out, shape.n_weights) for shape in shapes] == [
        ("recurrent op lstm, steps 7, directions 2", 5, 16, 2 * 4 * 16 * (5 + 16)),
        ("recurrent op gru, steps 7, directions 1", 32, 12, 3 * 12 * (32 + 12)),
        ("recurrent op gru, steps 7, directions 1", 12, 12, 3 * 12 * (12 + 12)),
    ]
    for probe in (*probes_of(shapes, batch=2), *reference_probes(shapes)):
        session = onnxruntime.InferenceSession(probe.model(), providers=["CPUExecutionProvider"])
        feed = {name: np.ones(shape, dtype=np.float32) for name, shape in probe.inputs().items()}
        (result,) = session.run(None, feed)
        steps, directions = probe.shape.settings["steps"], probe.shape.settings["directions"]
        assert result.shape == (steps, directions, probe.batch, probe.width_out)


@pytest.mark.parametrize("layer", [nn.LSTM(5, 16, batch_first=True, bidirectional=True), nn.GRU(5, 16)])
def test_what_is_measured_is_what_a_file_has(tmp_path: Path, layer: nn.Module) -> None:
    program, _, shapes = recurrent_of(layer)
    draft_onnx(program, tmp_path / "net.onnx")
    (node,) = [one for one in onnx.load(tmp_path / "net.onnx").graph.node if one.op_type in ("LSTM", "GRU")]
    (own,) = [one for one in onnx.load_from_string(probes_of(shapes)[0].model()).graph.node if one.name == "layer"]
    told, wanted = ({a.name: onnx.helper.get_attribute_value(a) for a in one.attribute} for one in (own, node))
    assert own.op_type == node.op_type and told.items() <= wanted.items()


def test_a_projection_is_left_out() -> None:
    assert recurrent_of(Projected())[2] == []


def by_weights(shapes: list[LayerShape]) -> Device:
    """A device on which a layer takes as long as it has weights."""

    def ms(kind: str, a: int, b: int) -> float:
        return (b * (a + b) if kind == "recurrent" else a * b) / 1000

    probes = probes_of(shapes)
    points = [Point(p.shape.key, p.width_in, p.width_out, ms(p.shape.kind, p.width_in, p.width_out)) for p in probes]
    return Device("a runtime 1.0", "a processor", 1, 1, tuple(points))


def test_the_time_of_a_recurrent_layer_goes_with_its_units() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.out = nn.LSTM(5, 64, batch_first=True), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cells(x)[0][:, -1])

    program = captured(Cells(), SEQUENCE)
    graph = edgeprune.analyze(program)
    device = by_weights(list(layer_shapes(graph).values()))
    model = latency_model(graph, device)
    assert model.total == pytest.approx((64 * (5 + 64) + 64 * 3) / 1000)
    (number,) = [n for n, group in enumerate(graph.groups) if group.n_units == 64]
    counts = np.array([group.n_units for group in graph.groups], dtype=float)
    counts[number] = 32  # a quarter of the units' own products, half of the rest
    assert model.cost(counts) == pytest.approx((32 * (5 + 32) + 32 * 3) / 1000, rel=0.02)
    chosen = plan(program, graph, None, device=device, keep_latency=0.4, align=1)
    slim = edgeprune.analyze(edgeprune.cut(program, chosen, graph))
    assert 0.3 < latency_model(slim, device).total / model.total <= 0.42
    assert macs_model(slim).total < 0.45 * macs_model(graph).total


def test_layers_without_a_measurement_are_named_with_their_macs() -> None:
    _, graph, shapes = recurrent_of(Recurrent())
    macs = {"lstm": 7 * 8 * 16 * 21, "gru": 7 * 36 * (44 + 24), "rnn_tanh": 7 * 8 * (12 + 8), "linear": 8 * 3}
    total = sum(macs.values())
    found = coverage(graph, by_weights(shapes))
    assert found.by_kind == {"recurrent": pytest.approx((macs["lstm"] + macs["gru"]) / total)}
    assert [(one.operator, one.n_layers) for one in found.unmeasured] == [("rnn_tanh", 1), ("linear", 1)]
    assert [one.macs_share for one in found.unmeasured] == pytest.approx(
        [macs["rnn_tanh"] / total, macs["linear"] / total]
    )
    assert found.is_enough
    others = [shape for shape in layer_shapes(graph).values() if shape.kind == "linear"]
    with pytest.raises(InputError, match="expected measurements of this network's layers, got those of 0% of its"):
        check_known(graph, by_weights(others), "d.json", "make it so")


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    return tmp_path


def ran(*command: str) -> Any:
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def profiled(name: str, shape: str, *more: str) -> Any:
    return ran("profile", f"nets.py:{name}", "--input-shape", shape, "--runs", "2", "--warmup", "0", *more)


def saved(name: str) -> tuple[str, ...]:
    """The weights of a network in a file, and what a command is given to read it."""
    torch.manual_seed(0)
    torch.save(architectures.build(f"nets.py:{name}").state_dict(), "model.pt")
    return "model.pt", "--arch", f"nets.py:{name}", "--input-shape", "7,5"


def test_what_profile_says_comes_next_works(folder: Path) -> None:
    shown = profiled("lstm", "7,5", "--out", "d.json").stdout
    assert "│ recurrent │" in shown and "not measured" not in shown
    saved("lstm")
    (line,) = [line for line in shown.splitlines() if "edgeprune compress" in line]
    words = line.split("edgeprune ")[1].split()
    assert words == [
        "compress", "model.pt", "--arch", "nets.py:lstm", "--input-shape", "7,5", "--device", "d.json",
    ]  # fmt: skip
    assert ran(*words, "--out", "run").exit_code == 0


def test_a_profile_of_too_few_layers_says_so_and_offers_nothing(folder: Path) -> None:
    shown = profiled("rnn", "7,5", "--out", "d.json").stdout
    (row,) = [line for line in shown.splitlines() if "rnn_tanh" in line]
    assert row.replace("│", " ").split() == ["rnn_tanh", "1", "–", "not", "measured", "–", "97%"]
    assert "! 97% of the MACs are in layers that are not measured: compress plans no network by this profile" in shown
    assert "edgeprune compress" not in shown
    told = json.loads(profiled("rnn", "7,5", "--out", "e.json", "--json").stdout)
    assert told["unmeasured"] == [{"operator": "rnn_tanh", "n_layers": 1, "macs_share": pytest.approx(2352 / 2416)}]
    assert told["is_enough"] is False and "input_shape" not in told
    given = saved("rnn")
    refused = " ".join(ran("compress", *given, "--device", "d.json", "--out", "run").stderr.split())
    assert (
        "d.json: expected a network of which a profile measures 50% of the MACs, got one with rnn_tanh (97%)" in refused
    )
    assert "plan without a profile" in refused and "edgeprune profile" not in refused


def test_a_profile_of_another_network_is_refused_with_the_command_that_makes_one(folder: Path) -> None:
    profiled("rnn", "7,5", "--out", "d.json")
    given = saved("lstm")
    refused = " ".join(ran("compress", *given, "--device", "d.json", "--out", "run").stderr.split())
    assert f"got those of 0% of its MACs; make it with: edgeprune profile {' '.join(given)}" in refused


def test_layers_that_are_not_measured_are_counted_among_those_that_are(folder: Path) -> None:
    shown = profiled("mixed", "7,5", "--out", "d.json").stdout
    assert "by MACs" in shown and "edgeprune compress" in shown
    told = json.loads(profiled("mixed", "7,5", "--out", "e.json", "--json").stdout)
    shares = [one["macs_share"] for one in (*told["kinds"], *told["unmeasured"])]
    assert sum(shares) == pytest.approx(1)


def test_a_network_of_which_nothing_is_measured_gets_no_profile(folder: Path) -> None:
    found = profiled("upwards", "1,8,8", "--out", "d.json")
    assert found.exit_code == 2 and "expected a network with a layer whose time is measured" in found.stderr
    assert not Path("d.json").exists()
