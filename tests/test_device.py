"""A device's profile: stairs, files from outside, and what the planner makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cost.device import Device, Point, read_device, stair
from edgeprune.cost.layers import POINTWISE, LayerShape, layer_shapes
from edgeprune.cost.models import bytes_model, latency_model, macs_model, main_step
from edgeprune.errors import BudgetError, InputError
from edgeprune.export.probes import probes_of, reference_probes
from edgeprune.measure.profiling import Timing, profile
from edgeprune.progress import Silent
from edgeprune.pruning.planner import plan
from tests.cases import IMAGE
from tests.nets import captured

WIDTHS = range(4, 100, 4)


def steps_of(size: int, overhead: float = 0.2) -> dict[int, float]:
    return {width: overhead + math.ceil(width / size) * size / 100 for width in WIDTHS}


@pytest.mark.parametrize("size", [8, 16, 32])
def test_stairs_are_found(size: int) -> None:
    rng = np.random.default_rng(size)
    curve = {width: ms * rng.uniform(0.99, 1.01) for width, ms in steps_of(size).items()}
    assert stair(curve) == size


def test_a_slope_has_no_stairs() -> None:
    assert stair({width: 0.1 + width / 100 for width in WIDTHS}) == 1
    assert stair({width: 1.0 for width in WIDTHS}) == 1


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, padding=1, groups=4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5),
    )  # fmt: skip


def staircase_device(shapes: list[LayerShape], size: int = 16, batch: int = 1) -> Device:
    """A device on which every layer costs what its channels, rounded up to the stairs, cost."""
    probes = [*reference_probes(shapes, batch), *probes_of(shapes, batch)]

    def ms(width_in: int, width_out: int) -> float:
        return math.ceil(width_in / size) * math.ceil(width_out / size) / 50

    points = [Point(p.shape.key, p.width_in, p.width_out, ms(p.width_in, p.width_out)) for p in probes]
    return Device("a runtime 1.0", "a processor", 1, batch, tuple(points))


def test_the_layers_of_a_network() -> None:
    graph = edgeprune.analyze(captured(net(), IMAGE))
    shapes = layer_shapes(graph)
    assert [(s.kind, s.width_in, s.width_out) for s in shapes.values()] == [
        ("convolution", 3, 32), ("depthwise", 32, 32), ("convolution", 32, 64), ("grouped", 64, 64),
        ("linear", 64, 48), ("linear", 48, 5),
    ]  # fmt: skip
    first = next(iter(shapes.values()))
    assert first.key == "convolution kernel 3x3, stride 1x1, pads 1x1x1x1, dilation 1x1, size 8x8"
    assert first.n_weights == 32 * 27


def test_probes_are_files_that_run() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(32, 4, batch_first=True)
            self.conv = nn.Conv1d(32, 16, 3, padding="same")
            self.norm = nn.LayerNorm(32)
            self.first = nn.Linear(32, 32)

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            heads = x.unflatten(2, (4, 8)).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            x = x + mixed.transpose(1, 2).flatten(2)
            x = nn.functional.gelu(self.norm(x)) * nn.functional.silu(x)
            x = nn.functional.hardswish(x) + nn.functional.elu(x) - torch.tanh(x)
            return self.conv(nn.functional.hardsigmoid(x).sigmoid().transpose(1, 2))

    shapes = [
        *layer_shapes(edgeprune.analyze(captured(net(), IMAGE))).values(),
        *layer_shapes(edgeprune.analyze(captured(Attending(), (6, 32)))).values(),
    ]
    kinds = {"convolution", "depthwise", "grouped", "linear", "attention", "pointwise"}
    assert {shape.kind for shape in shapes} == kinds
    assert {shape.settings["op"] for shape in shapes if shape.kind == "pointwise"} == set(POINTWISE)
    for probe in probes_of(shapes, batch=2):
        content = probe.model()
        assert len(content) < 2000
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        feed = {name: np.ones(shape, dtype=np.float32) for name, shape in probe.inputs().items()}
        (result,) = session.run(None, feed)
        assert result.shape[0] in (2, 2 * next(iter(feed.values())).shape[0] // 2)
        assert probe.width_out in result.shape


def test_wide_layers_do_not_hide_the_stairs() -> None:
    """A network that has the very layer on which stairs are measured brings far wider widths of it."""
    shapes = list(layer_shapes(edgeprune.analyze(captured(net(), IMAGE))).values())
    device = staircase_device(shapes)
    reference = next(probe for probe in reference_probes(shapes) if probe.shape.kind == "convolution")
    wide = [Point(reference.shape.key, reference.width_in, width, 4 * width / 800) for width in (116, 512, 1000)]
    assert replace(device, points=(*device.points, *wide)).step("convolution") == 16


def test_a_model_of_latency_follows_the_stairs() -> None:
    graph = edgeprune.analyze(captured(net(), IMAGE))
    shapes = list(layer_shapes(graph).values())
    device = staircase_device(shapes)
    assert main_step(graph, device) == 16
    counts = np.array([group.n_units for group in graph.groups], dtype=float)
    model = latency_model(graph, device)
    assert model.total == pytest.approx(sum(device.milliseconds(shape) for shape in shapes))
    assert model.cost(counts) == pytest.approx(model.total)
    for number, group in enumerate(graph.groups):
        if group.n_units >= 32:
            curve = [model.saving(counts, number, removed) for removed in range(0, 17)]
            assert curve[15] == pytest.approx(0.0, abs=1e-9)  # on the same stair
            assert curve[16] > 0


def test_a_slim_network_is_foretold_by_the_dense_ones_profile() -> None:
    program = captured(net(), IMAGE)
    graph = edgeprune.analyze(program)
    device = staircase_device(list(layer_shapes(graph).values()))
    chosen = plan(program, graph, None, device=device, keep_latency=0.5)
    slim = edgeprune.cut(program, chosen, graph)
    again = edgeprune.analyze(slim)
    grouped = [
        shape for shape in layer_shapes(again).values() if shape.kind == "grouped"
    ]  # of other groups than before
    known = replace(device, points=(*device.points, *staircase_device(grouped).points))
    assert latency_model(again, known).total <= 0.55 * latency_model(graph, device).total
    widths = [group.after for group in chosen.groups if group.before >= 32]
    assert all(width % 16 == 0 for width in widths)


@pytest.mark.parametrize(("width", "multiple"), [(96, 32), (40, 16), (24, 8), (12, 4)])
def test_layers_narrower_than_two_stairs_are_cut_on_parts_of_one(width: int, multiple: int) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.LazyLinear(5)
    model = nn.Sequential(*layers)
    model(torch.randn(1, *IMAGE))
    program = captured(model, IMAGE)
    graph = edgeprune.analyze(program)
    device = staircase_device(list(layer_shapes(graph).values()), size=32)
    assert main_step(graph, device) == 32
    for keep_macs in (0.8, 0.55):
        kept = [group.after for group in plan(program, graph, keep_macs, device=device).groups]
        assert all(count == width or count % multiple == 0 for count in kept)
        assert min(kept) < width


def test_what_saves_no_time_stays_where_time_is_all_that_is_asked_for() -> None:
    """Half of a narrow stem is nearly zero, but as fast as the whole of it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 5, 1),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[::2] *= 0.01
        model[2].weight[:, ::2] *= 0.01
    program = captured(model, IMAGE)
    graph = edgeprune.analyze(program)
    device = staircase_device(list(layer_shapes(graph).values()))
    stem, *others = plan(program, graph, None, device=device, keep_latency=0.5).groups
    assert stem.after == stem.before
    assert all(group.after < group.before for group in others)


def test_a_budget_in_bytes() -> None:
    program = captured(net(), IMAGE)
    graph = edgeprune.analyze(program)
    chosen = plan(program, graph, None, align=1, keep_bytes=0.4)
    slim = edgeprune.cut(program, chosen, graph)
    sizes = [sum(t.numel() * t.element_size() for t in p.state_dict.values()) for p in (program, slim)]
    assert bytes_model(program, graph).total == sizes[0]
    assert bytes_model(slim, edgeprune.analyze(slim)).total == sizes[1] <= 0.4 * sizes[0]


def test_several_budgets_hold_together() -> None:
    program = captured(net(), IMAGE)
    graph = edgeprune.analyze(program)
    device = staircase_device(list(layer_shapes(graph).values()))
    chosen = plan(program, graph, 0.7, device=device, keep_latency=0.6, keep_bytes=0.5)
    slim = edgeprune.cut(program, chosen, graph)
    again = edgeprune.analyze(slim)
    for model in (macs_model, lambda g: bytes_model(slim if g is again else program, g)):
        assert model(again).total < 0.7 * model(graph).total
    with pytest.raises(BudgetError, match="of the bytes cannot be met"):
        plan(program, graph, None, keep_bytes=0.001)
    with pytest.raises(InputError, match="keep_latency: expected a device"):
        plan(program, graph, None, keep_latency=0.5)


def test_profiling_measures_what_is_not_known_yet() -> None:
    shapes = [s for s in layer_shapes(edgeprune.analyze(captured(net(), IMAGE))).values() if s.kind == "linear"]
    device = profile(shapes, Timing(runs=3, warmup=1), Silent())
    assert device.runtime == f"onnxruntime {onnxruntime.__version__}"
    assert all(device.knows(shape) and device.milliseconds(shape) > 0 for shape in shapes)
    again = profile(shapes, Timing(runs=3, warmup=1), Silent())
    assert set(again.points) == set(device.points)
    fresh = profile(shapes, Timing(runs=3, warmup=1), Silent(), fresh=True)
    assert fresh.points != device.points
    wider = [replace(shapes[0], width_in=4 * shapes[0].width_in)]  # another network's, measured at another time
    apart = set(profile(wider, Timing(runs=3, warmup=1), Silent()).points) - set(fresh.points)
    assert apart
    assert set(profile(shapes, Timing(runs=3, warmup=1), Silent()).points) == set(fresh.points)
    curve = device.stairs(shapes[0], "out")
    assert curve[0] == 0
    assert curve[-1] == 1
    assert (np.diff(curve) >= -1e-12).all()


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    device = staircase_device(list(layer_shapes(edgeprune.analyze(captured(net(), IMAGE))).values()))
    file = tmp_path / "device.json"
    file.write_text(device.to_json())
    assert read_device(file) == device


BASE = {"format": "edgeprune-device/1", "runtime": "r", "cpu": "c", "threads": 1, "batch": 1}
POINT = {"layer": "linear rows 1", "width_in": 4, "width_out": 4, "ms": 0.1}


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ("{", "got no JSON"),
        ("[" * 100_000, "got JSON of more than 64 levels"),
        ([], "expected the format edgeprune-device/1, got 'list'"),
        ({**BASE, "format": "edgeprune-device/2"}, "expected the format edgeprune-device/1, got 'edgeprune-device/2'"),
        (BASE, "points: expected a list of 1 to"),
        ({**BASE, "points": []}, "points: expected a list of 1 to"),
        ({**BASE, "points": [1]}, r"points\[0\]: expected an object, got int"),
        ({**BASE, "points": [{**POINT, "ms": -1}]}, r"points\[0\].ms: expected milliseconds above 0, got -1"),
        ({**BASE, "points": [{**POINT, "ms": True}]}, r"points\[0\].ms: expected milliseconds above 0"),
        (
            {**BASE, "points": [POINT, {**POINT, "width_in": 0}]},
            r"points\[1\].width_in: expected a whole number",
        ),
        ({**BASE, "points": [{**POINT, "layer": "x" * 500}]}, r"points\[0\].layer: expected a short text"),
        ({**BASE, "threads": "2", "points": [POINT]}, "threads: expected a whole number from 1"),
        ({**BASE, "cpu": None, "points": [POINT]}, "cpu: expected a short text"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, document: Any, fragment: str) -> None:
    file = tmp_path / "device.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=fragment) as error:
        read_device(file)
    assert str(file) in str(error.value)
