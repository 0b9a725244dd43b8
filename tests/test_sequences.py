"""Sensors of `(batch, steps, sensors)` are features as whole ones, with a mean and std each, as channels are."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.data import normalize, open_data
from edgeprune.data.featuredims import said_of_dims
from edgeprune.data.fitting import with_inputs_of
from edgeprune.data.splits import measure
from edgeprune.errors import InputError, PlanError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.front import Preprocessing, feature_scaling, kept
from edgeprune.export.metadata import metadata_of, normalization_in
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.formats.normalizing import asked_normalization
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import feature_grids, features_after
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.slim_inputs import gathered, slim_contract
from edgeprune.records import DataSource, InputFeatures, ModelInfo, Normalization

STEPS, SENSORS = 20, 6
NAMES = ("gyroscope", "temperature", "humidity", "pressure", "light", "gas")
TOLD = (0, 3)  # which sensors tell the class
SCALES, OFFSETS = (1e-2, 50.0, 3.0, 1000.0, 0.5, 10.0), (0.0, -30.0, 5.0, 4000.0, 1.0, 0.0)
NETS = """
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, sensors_first):
        super().__init__()
        self.sensors_first = sensors_first
        self.steps, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.steps(x.transpose(1, 2) if self.sensors_first else x)[0].mean(1))


def reader(sensors_first=False):
    return Reader(sensors_first)
"""


class Recurrent(nn.Module):
    """A recurrent layer over the steps, then a linear one on the mean of what it gives."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(SENSORS, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0].mean(1))


class Attending(nn.Module):
    """A linear embedding of each step, then an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(SENSORS, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x)).mean(1))


class Turned(nn.Module):
    """A convolution over the steps of what is turned to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(SENSORS, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.transpose(1, 2)).relu().mean(2))


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "lstm": lambda _: Recurrent(nn.LSTM),
    "gru": lambda _: Recurrent(nn.GRU),
    "encoder": lambda _: Attending(),
    "turned": lambda _: Turned(),
    "steps alone": lambda n_steps: nn.Sequential(
        nn.Linear(SENSORS, 8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * n_steps, 3)
    ),
}


@cache
def program_of(name: str, n_steps: int = STEPS) -> Program:
    torch.manual_seed(0)
    net = BUILDERS[name](n_steps).double()
    return edgeprune.capture(net, torch.randn(2, n_steps, SENSORS, dtype=torch.float64))


@cache
def graph_of(name: str, n_steps: int = STEPS) -> ChannelGraph:
    return edgeprune.analyze(program_of(name, n_steps), inputs=True)


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(STEPS * SENSORS, 8), nn.ReLU(), nn.Linear(8, 3))


def sensors(n_samples: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Samples `(n, steps, sensors)` of three classes that two sensors tell, and scales that are far apart."""
    draws = np.random.default_rng(0)
    y = draws.integers(0, 3, n_samples)
    x = draws.normal(size=(n_samples, STEPS, SENSORS))
    for sensor, own in zip(TOLD, (1, 0), strict=True):
        x[..., sensor] += np.where(y == own, 1.2, -0.4)[:, None]
    return (x * SCALES + OFFSETS).astype(np.float32), y


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    (x, y), names = sensors(), np.array(NAMES)
    np.savez(folder / "steps.npz", x=x, y=y, feature_names=names)
    np.savez(folder / "channels.npz", x=x.transpose(0, 2, 1), y=y, feature_names=names)
    np.savez(folder / "unnamed.npz", x=x, y=y)
    np.savez(folder / "by_name.npz", series=x, row=x[:, 0], y=y)
    (folder / "nets.py").write_text(NETS)
    return folder


# -- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_a_sensor_is_one_feature_of_all_steps(name: str) -> None:
    [grid] = feature_grids(graph_of(name).analysis).values()
    assert (grid.dim, grid.told_dim, len(grid)) == (2, 2, SENSORS)
    assert grid.elements.shape == (SENSORS, STEPS)
    assert len(set(grid.units.tolist())) == SENSORS


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=2, deadline=None)
@given(keep=st.sets(st.integers(0, SENSORS - 1), min_size=1, max_size=SENSORS - 1))
def test_any_sensors_can_go(name: str, keep: set[int]) -> None:
    program, graph = program_of(name, 3), graph_of(name, 3)
    [(source, grid)] = feature_grids(graph.analysis).items()
    units = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    units[np.delete(grid.units, sorted(keep))] = False
    features = InputFeatures(SENSORS, tuple(sorted(keep)), 2)
    assert features_after(graph.analysis, source, units) == features
    plan = make_plan(program, graph, units)
    assert plan.to_json() == type(plan).from_json(plan.to_json()).to_json()
    slim = edgeprune.cut(program, plan, graph)
    assert gathered(slim) == features
    x = torch.randn(5, 3, SENSORS, dtype=torch.float64)
    masked = torch.zeros_like(x)
    masked[..., list(features.keep)] = x[..., list(features.keep)]
    want = program.module()(masked)
    torch.testing.assert_close(slim.module()(x), want)
    torch.testing.assert_close(slim_contract(slim).module()(x[..., list(features.keep)]), want)


def test_a_free_number_of_steps_stays_free() -> None:
    steps = {0: torch.export.Dim("batch"), 1: torch.export.Dim("steps", min=2, max=64)}
    program = torch.export.export(Attending().eval(), (torch.randn(2, STEPS, SENSORS),), dynamic_shapes=(steps,))
    graph = edgeprune.analyze(program, inputs=True)
    [grid] = feature_grids(graph.analysis).values()
    assert (grid.dim, len(grid)) == (2, SENSORS)
    plan = edgeprune.plan(program, graph, keep_macs=None, n_features=3)
    slim = edgeprune.cut(program, plan, graph)
    [features] = plan.inputs.values()
    assert gathered(slim) == features
    x = torch.randn(3, 11, SENSORS)
    torch.testing.assert_close(slim_contract(slim).module()(x[..., list(features.keep)]), slim.module()(x))


def test_channels_come_first_where_nothing_tells_dims_apart() -> None:
    program = edgeprune.capture(nn.Sequential(nn.LayerNorm(SENSORS), nn.Flatten()), torch.randn(2, STEPS, SENSORS))
    [grid] = feature_grids(edgeprune.analyze(program, inputs=True).analysis).values()
    assert (grid.dim, grid.told_dim) == (1, None)


def test_a_plan_along_a_dim_of_another_size_is_refused() -> None:
    program = program_of("lstm")
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=None, n_features=3)
    document = json.loads(plan.to_json())
    [features] = document["inputs"].values()
    for dim in (1, 3, None):
        features["dim"] = dim
        with pytest.raises(PlanError, match=r"the plan counts 6 features over .* of input 'x'"):
            edgeprune.cut(program, type(plan).from_json(json.dumps(document)))


# -- mean and std ----------------------------------------------------------------------------------------------------


def test_names_say_along_which_dim_features_lie(place: Path) -> None:
    steps, channels = (open_data(f"npz:{place / name}") for name in ("steps.npz", "channels.npz"))
    assert (steps.feature_dim, channels.feature_dim) == (2, 1)
    assert steps.feature_names == channels.feature_names == NAMES
    assert (steps.normalization.dim, channels.normalization.dim) == (2, 1)
    np.testing.assert_allclose(steps.normalization.mean, channels.normalization.mean)
    np.testing.assert_allclose(steps.normalization.std, channels.normalization.std)
    x = steps.train.x
    one, other = normalize(x, steps.normalization), normalize(x.transpose(1, 2), channels.normalization)
    torch.testing.assert_close(one, other.transpose(1, 2))
    torch.testing.assert_close(one.std((0, 1)), torch.ones(SENSORS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("asked", "dim"), [("last", 2), ("2", 2), ("1", 1)])
def test_the_user_says_it(asked: str, dim: int, place: Path) -> None:
    data = open_data(f"npz:{place / 'unnamed.npz'}?features={asked}")
    assert (data.feature_dim, data.normalization) == (dim, measure(data.train, dim))
    assert with_inputs_of(data, program_of("lstm")).normalization == data.normalization


def test_bytes_are_grey_images_unless_their_dim_is_said(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (90, STEPS, SENSORS), np.uint8)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(90) % 3)
    np.savez(tmp_path / "named.npz", x=x, y=np.arange(90) % 3, feature_names=np.array(NAMES))
    assert open_data(f"npz:{tmp_path / 'x.npz'}").normalization.count == 1
    for spec in ("x.npz?features=last", "named.npz"):
        data = open_data(f"npz:{tmp_path / spec}")
        own = data.normalization
        assert (data.byte_scale, data.feature_dim, own.dim, own.count) == (1 / 255, 2, 2, SENSORS)
        np.testing.assert_allclose(own.mean, data.train.x.double().mean((0, 1)) / 255)


@pytest.mark.parametrize("asked", ["0", "3", "first", ""])
def test_a_dim_that_is_not_there_is_refused(asked: str, place: Path) -> None:
    with pytest.raises(InputError, match=r"expected features=1 to 2 or last for inputs \(20, 6\), got"):
        open_data(f"npz:{place / 'unnamed.npz'}?features={asked}")


def test_names_of_another_number_are_refused(tmp_path: Path) -> None:
    x, y = sensors(60)
    np.savez(tmp_path / "x.npz", x=x, y=y, feature_names=np.array(list("abcde")))
    with pytest.raises(InputError, match=r"expected 20 or 6 or 120 feature names for inputs \(20, 6\), got 5"):
        open_data(f"npz:{tmp_path / 'x.npz'}")
    np.savez(tmp_path / "x.npz", x=x, y=y, feature_names=np.array(NAMES))
    with pytest.raises(InputError, match=r"expected 20 or 120 feature names for inputs \(20, 6\), got 6"):
        open_data(f"npz:{tmp_path / 'x.npz'}?features=1")


def test_square_samples_leave_it_to_the_network(tmp_path: Path) -> None:
    x, y = sensors(90)
    np.savez(tmp_path / "x.npz", x=x[:, :SENSORS], y=y, feature_names=np.array(NAMES))
    data = open_data(f"npz:{tmp_path / 'x.npz'}")
    assert (data.feature_dim, data.normalization.dim) == (None, 1)
    fitted = with_inputs_of(data, edgeprune.capture(Recurrent(nn.GRU), torch.randn(2, SENSORS, SENSORS)))
    assert (fitted.feature_dim, fitted.normalization) == (2, measure(data.train, 2))
    given = asked_normalization("mean=1,2,3,4,5,6;std=1", fitted, None)
    assert given == Normalization((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), (1.0,), dim=2)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_network_says_it(name: str, place: Path) -> None:
    data = with_inputs_of(open_data(f"npz:{place / 'unnamed.npz'}"), program_of(name))
    assert (data.feature_dim, data.normalization) == (2, measure(data.train, 2))
    [said] = said_of_dims(data)
    assert said == "mean and std of the data: one for each of the 6 along dim 2 of x (20, 6), its features"


def test_nobody_says_it_and_that_is_told(place: Path) -> None:
    program = edgeprune.capture(flat(), torch.randn(2, STEPS, SENSORS))
    data = with_inputs_of(open_data(f"npz:{place / 'unnamed.npz'}"), program)
    assert (data.feature_dim, data.normalization.dim, data.normalization.count) == (None, 1, STEPS)
    [said] = said_of_dims(data)
    assert said.startswith("mean and std of the data: one for each of the 20 along dim 1 of x (20, 6), as nothing says")


def test_nothing_is_said_of_channels_and_images(place: Path) -> None:
    net = nn.Sequential(nn.Conv1d(SENSORS, 4, 3), nn.Flatten(), nn.Linear(4 * (STEPS - 2), 3))
    data = open_data(f"npz:{place / 'channels.npz'}")
    assert said_of_dims(with_inputs_of(data, edgeprune.capture(net, torch.randn(2, SENSORS, STEPS)))) == ()
    digits = open_data("digits")
    images = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fitted = with_inputs_of(digits, edgeprune.capture(images, torch.randn(2, 1, 8, 8)))
    assert (fitted.normalization, said_of_dims(fitted)) == (digits.normalization, ())


class Two(nn.Module):
    """A series and a row."""

    def __init__(self) -> None:
        super().__init__()
        self.series, self.row = Recurrent(nn.GRU), nn.Linear(SENSORS, 3)

    def forward(self, series: Tensor, row: Tensor) -> Tensor:
        return self.series(series) + self.row(row)


def test_inputs_by_name_have_their_own_dims(place: Path) -> None:
    program = edgeprune.capture(Two(), (torch.randn(2, STEPS, SENSORS), torch.randn(2, SENSORS)))
    data = with_inputs_of(open_data(f"npz:{place / 'by_name.npz'}"), program)
    series, row = data.normalization.of("series"), data.normalization.of("row")
    assert series is not None
    assert row is not None
    assert (series.dim, series.count, row.dim, row.count) == (2, SENSORS, 1, SENSORS)
    np.testing.assert_allclose(series.std, SCALES, rtol=0.3)
    assert len(said_of_dims(data)) == 1


def test_the_files_of_several_inputs_take_whole_sensors_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = edgeprune.capture(Two(), (torch.randn(2, 3, SENSORS), torch.randn(2, SENSORS)))
    graph = edgeprune.analyze(program, inputs=True)
    units = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    units[feature_grids(graph.analysis)["series"].units[[0, 2, 5]]] = False
    slim = edgeprune.cut(program, make_plan(program, graph, units), graph)
    own, draws = Normalization(OFFSETS, SCALES, dim=2), np.random.default_rng(0)
    info = ModelInfo((), normalization=Normalization((0.0,), (1.0,), (("series", own),)))
    write_contracts(slim, info, tmp_path, None, simplify=False)
    raw = {"series": (draws.normal(size=(4, 3, SENSORS)) * SCALES + OFFSETS).astype(np.float32)}
    raw["row"] = draws.normal(size=(4, SENSORS)).astype(np.float32)
    made = onnxruntime.InferenceSession(tmp_path / "preprocess.onnx").run(None, raw)
    assert [one.shape for one in made] == [(4, 3, 3), (4, SENSORS)]
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx")
    fed = dict(zip((value.name for value in session.get_inputs()), made, strict=True))
    series = normalize(torch.from_numpy(raw["series"]), own)
    with torch.no_grad():
        want = program.module()(series * torch.tensor([0, 1, 0, 1, 1, 0]), torch.from_numpy(raw["row"]))
    np.testing.assert_allclose(session.run(None, fed)[0], want.numpy(), atol=1e-5)
    [stated] = [one for one in json.loads((tmp_path / "features.json").read_text())["contracts"]["slim"]["inputs"]
                if one["name"] == "series"]  # fmt: skip
    assert stated["features"] == {"size": SENSORS, "dim": 2, "indices": [1, 3, 4]}
    assert (stated["scaling"]["dim"], stated["scaling"]["std"]) == (2, [SCALES[index] for index in (1, 3, 4)])


def test_a_stated_normalisation_finds_its_dim(tmp_path: Path, place: Path) -> None:
    (tmp_path / "data.py").write_text(
        "from dataclasses import replace\nfrom edgeprune.data import open_data\n"
        "from edgeprune.records import Normalization\n\n\ndef load():\n"
        f"    data = open_data('npz:{place / 'unnamed.npz'}')\n"
        "    return replace(data, normalization=Normalization((0.,) * 6, (1., 2., 3., 4., 5., 6.)))\n"
    )
    data: DataSource = open_data(f"{tmp_path / 'data.py'}:load")
    assert data.normalization.dim == 2


def test_the_dim_is_kept_in_files() -> None:
    own = Normalization((1.0,) * SENSORS, (2.0,) * SENSORS, dim=2)
    info = ModelInfo((STEPS, SENSORS), normalization=own)
    assert info_from_dict(json.loads(json.dumps(info_to_dict(info)))) == info
    before = {"input_shape": [6], "normalization": {"mean": [1.0], "std": [2.0]}}
    assert info_from_dict(before).normalization == Normalization((1.0,), (2.0,))
    for dim in (0, "2", True, 99):
        with pytest.raises(InputError, match="expected normalization's dim as a number from 1"):
            info_from_dict({**before, "normalization": {"mean": [1.0], "std": [2.0], "dim": dim}})
    stated = metadata_of(info, "full", Preprocessing((STEPS, SENSORS), own))
    assert normalization_in(stated, "x.onnx") == own


@pytest.mark.parametrize("scaled", [1, 2, None])
@pytest.mark.parametrize(
    "features",
    [InputFeatures(6, (1, 4), 2), InputFeatures(20, (0, 7, 9), 1), None, InputFeatures(120, (3, 17, 90, 119), None)],
)
def test_kept_features_are_scaled_as_the_whole_input(scaled: int | None, features: InputFeatures | None) -> None:
    draws = np.random.default_rng(1)
    count = 1 if scaled is None else (STEPS, SENSORS)[scaled - 1]
    mean, std = (tuple(one.tolist()) for one in (draws.normal(size=count), draws.uniform(1, 2, count)))
    own = Normalization(mean, std, dim=scaled or 1)
    x = draws.normal(size=(4, STEPS, SENSORS)).astype(np.float32)
    whole = normalize(torch.from_numpy(x), own).numpy()
    scaling = feature_scaling(Preprocessing((STEPS, SENSORS), own, features))
    if features is None:
        np.testing.assert_allclose(normalize(torch.from_numpy(x), scaling).numpy(), whole, rtol=1e-5)
    else:
        slim = normalize(torch.from_numpy(kept(x, features)), scaling).numpy()
        np.testing.assert_allclose(slim, kept(whole, features), rtol=1e-5)


# -- the whole way ---------------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


@pytest.fixture(scope="module", params=["steps", "channels"])
def compressed(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    """A network that was trained and compressed to three sensors on the same samples in either layout."""
    kind: str = request.param
    arch = f"{place / 'nets.py'}:reader?sensors_first={kind == 'channels'}"
    data, dense, out = ("--data", f"npz:{place / kind}.npz"), str(place / f"{kind}.pt"), place / f"run_{kind}"
    run("train", "--arch", arch, *data, "--epochs", "20", "--lr", "0.02", "--threads", "1", "--out", dense)
    quick = ("--finetune-epochs", "2", "--max-drop", "20", "--keep-macs", "0.6", "--threads", "1")
    run("compress", dense, "--arch", arch, *data, "--input-features", "3", *quick, "--out", str(out))
    run("export", "--onnx", str(out / "slim.pt2"), "--out", str(out))
    return kind, out


@pytest.mark.parametrize(("asked", "kept"), [(3, 3), (3 * STEPS, 3), (4 * STEPS - 1, 3), (SENSORS + 1, 1)])
def test_a_count_above_all_sensors_is_of_the_numbers_in_them(asked: int, kept: int) -> None:
    program = program_of("lstm")
    plan = edgeprune.plan(program, graph_of("lstm"), keep_macs=None, criterion="random", n_features=asked)
    [features] = plan.inputs.values()
    assert (len(features.keep), features.size, features.dim) == (kept, SENSORS, 2)
    with pytest.raises(InputError, match=f"expected to keep 1 to {SENSORS}, got {STEPS * SENSORS + 1}"):
        edgeprune.plan(program, graph_of("lstm"), criterion="random", n_features=STEPS * SENSORS + 1)


@pytest.mark.slow
def test_the_sensors_that_tell_stay_in_either_layout(compressed: tuple[str, Path]) -> None:
    kind, out = compressed
    [features] = json.loads((out / "plan.json").read_text())["inputs"].values()
    assert (features["size"], features["dim"]) == (SENSORS, 2 if kind == "steps" else 1)
    assert set(TOLD) < set(features["keep"])
    assert len(features["keep"]) == 3
    stated = json.loads((out / "features.json").read_text())
    assert stated["names"] == [NAMES[index] for index in features["keep"]]
    assert stated["indices"] == features["keep"]
    np.testing.assert_allclose(stated["scaling"]["std"], [SCALES[index] for index in features["keep"]], rtol=0.5)
    record = json.loads((out / "run.json").read_text())
    assert record["features"] == features
    assert record["dense"]["test_accuracy"] > 0.85
    assert "gyroscope" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_files_answer_as_pytorch_does(compressed: tuple[str, Path], place: Path) -> None:
    kind, out = compressed
    x = open_data(f"npz:{place / kind}.npz").test.x
    load = edgeprune.load_model(out / "slim.pt2")
    assert load.info.normalization is not None
    with torch.no_grad():
        want = load.program.module()(normalize(x, load.info.normalization)).numpy()
    made = answers(out / "preprocess.onnx", x.numpy())
    assert made.shape[1:] == ((STEPS, 3) if kind == "steps" else (3, STEPS))
    np.testing.assert_allclose(answers(out / "slim.onnx", made), want, atol=1e-5)
    told = run("validate", str(out / "full.onnx"), str(out / "slim.onnx"), "--data", f"npz:{place / kind}.npz",
               "--runs", "10")  # fmt: skip
    assert "0.00 points" in told


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]
