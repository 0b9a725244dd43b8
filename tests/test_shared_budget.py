"""One budget for input features and channels: what is left costs what it may, in networks of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.cost.limits import Aim, Limit
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.cost.models import bytes_model, macs_model, params_model
from edgeprune.data import open_data
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.progress import Silent
from edgeprune.pruning.dead_units import plan_dead
from edgeprune.pruning.feature_prices import feature_prices
from edgeprune.pruning.feature_rules import RuledFeatures
from edgeprune.pruning.planner import make_plan
from edgeprune.records import DataSource
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.settings import FeatureRules, TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.training import fit
from tests.sensors import NAMES, sensors_in


class Stages(nn.Module):
    """A residual stage, a depthwise layer and a strided one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.depth, self.down = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        return self.head(self.down(self.depth(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sensors_in(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def data(sources: Path) -> DataSource:
    return open_data(f"csv:{sources}?target=state")


def table() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))


def trained(
    net: nn.Module, data: DataSource, epochs: int = 8, graph: ChannelGraph | None = None, **options: object
) -> tuple[Program, float]:
    """The network with zeros where units went, and its accuracy."""
    settings = TrainSettings(
        epochs=epochs,
        lr=1e-2,
        batch_size=32,
        threads=1,
        method="shared-budget",
        options=options,  # type: ignore[arg-type]
    )
    records = fit(net, data, data.normalization, settings, graph=graph)
    return edgeprune.capture(net, torch.zeros(2, *data.input_shape)), records[-1].val_value


def without_dead(program: Program) -> tuple[Program, int | None]:
    """The network without what went, which computes the same, and how many features are left if some went."""
    plan = plan_dead(program, inputs=True)
    assert plan is not None
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-4
    return slim, next((len(features.keep) for features in plan.inputs.values()), None)


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_costs_by_units_are_those_of_the_cut_network() -> None:
    torch.manual_seed(0)
    program = edgeprune.capture(Stages(), torch.randn(2, 1, 8, 8))
    graph = edgeprune.analyze(program, inputs=True)
    models = macs_model(graph), params_model(graph), bytes_model(program, graph)
    for seed in range(3):
        draws, keep = np.random.default_rng(seed), np.ones(len(graph.analysis.solver.canonical), dtype=bool)
        for group in graph.groups:
            keep[draws.permutation(group.units)[: draws.integers(0, group.n_units - 1)]] = False
        slim = edgeprune.cut(program, make_plan(program, graph, keep), graph)
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in slim.state_dict.values())
        assert [round(model.left(keep)) for model in models] == [macs(slim), count_parameters(slim), n_bytes]


def test_a_unit_costs_what_its_removal_saves_where_it_lies_in_one_dim_of_each_layer() -> None:
    program = edgeprune.capture(table(), torch.randn(2, 8))
    graph = edgeprune.analyze(program, inputs=True)
    model, keep = params_model(graph), np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        fewer = keep.copy()
        fewer[group.units[3]] = False
        saved = model.left(keep) - model.left(fewer)
        assert model.prices(keep)[group.units[3]] == pytest.approx(saved)


# -- what is left ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [{"keep_params": 0.3}, {"keep_macs": 0.3}, {"keep_macs": 0.5, "keep_params": 0.3}])
def test_features_and_units_go_until_the_budget_is_met(data: DataSource, options: dict[str, float]) -> None:
    dense, (program, accuracy) = edgeprune.capture(table(), torch.randn(2, 8)), trained(table(), data, **options)
    slim, n_features = without_dead(program)
    shares = {"keep_macs": macs(slim) / macs(dense), "keep_params": count_parameters(slim) / count_parameters(dense)}
    assert all(0.6 * share < shares[name] <= share for name, share in options.items() if share == 0.3)
    assert all(shares[name] <= share for name, share in options.items())
    assert n_features is not None and 2 <= n_features < 8
    assert accuracy > 0.9
    columns = slim.module().get_parameter("0.weight")
    assert columns.shape[0] < 24


def test_the_features_alone_stay_where_they_are_not_to_go(data: DataSource) -> None:
    program, _ = trained(table(), data, keep_params=0.3, input_features="off")
    slim, n_features = without_dead(program)
    assert n_features is None
    assert count_parameters(slim) <= 0.3 * count_parameters(program)


def test_a_dear_input_goes_sooner_and_a_cheap_one_later(data: DataSource, tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text("feature,price\naz,50\n1,8\n3,8\n5-7,8\n")  # all but those that tell the class
    left = {}
    for price in ("0.02", "5", str(prices)):
        program, accuracy = trained(table(), data, keep_params=0.4, feature_price=price)
        plan = plan_dead(program, inputs=True)
        assert plan is not None and accuracy > 0.9
        left[price] = next((features.keep for features in plan.inputs.values()), None)
    assert left["0.02"] is None  # all of them stay, and the channels pay for it
    assert left["5"] in ((0, 4), (2, 4))
    assert left[str(prices)] == (0, 4)


def test_convolutions_residual_stages_and_aligned_widths() -> None:
    torch.manual_seed(0)
    digits = open_data("digits")
    net = Stages()
    dense = edgeprune.capture(net, torch.zeros(2, *digits.input_shape))
    program, accuracy = trained(net, digits, epochs=4, keep_macs=0.4, align=4)
    slim, _ = without_dead(program)
    assert 0.2 * macs(dense) < macs(slim) <= 0.4 * macs(dense)
    widths = [slim.module().get_parameter(f"{name}.weight").shape[0] for name in ("stem", "one", "down")]
    assert all(width % 4 == 0 for width in widths) and widths != [16, 24, 16]
    assert accuracy > 0.5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_params": 0.01}, BudgetError, "expected to keep at least 0.03165 of the parameters, .*, got 0.01"),
        ({"keep_macs": 0.5, "feature_price": "nan"}, InputError, "--feature-price: expected a price above 0, got nan"),
        ({"keep_macs": 0.5, "feature_price": "none.csv"}, InputError, "none.csv: expected a file of feature prices"),
    ],
)
def test_what_cannot_be_is_refused(
    data: DataSource, options: dict[str, object], error: type[Exception], message: str
) -> None:
    net = table()
    before = net[0].weight.detach().clone()
    with pytest.raises(error, match=message):
        trained(net, data, **options)
    assert torch.equal(before, net[0].weight)


def test_a_network_that_is_all_locked_is_refused(data: DataSource) -> None:
    with pytest.raises(InputError, match="expected a network with channels or input features that can be removed, got"):
        trained(nn.Linear(8, 4), data, keep_macs=0.5, input_features="off")


def test_prices_need_inputs_whose_features_can_go() -> None:
    with pytest.raises(InputError, match="--feature-price: expected a network with inputs whose features can be"):
        trained(Stages(), open_data("digits"), keep_macs=0.5, feature_price="4")


# -- prices ------------------------------------------------------------------------------------------------------------

FEATURES = RuledFeatures(8, tuple(NAMES), 8)


def test_prices_by_name_number_range_and_group(tmp_path: Path) -> None:
    rules = FeatureRules((), ((0, 1, 2), (3, 4, 5)), ("accelerometer", "gyroscope"))
    assert feature_prices("4", rules, FEATURES) == (4.0,) * 8
    path = tmp_path / "prices.json"
    path.write_text('{"accelerometer": 3, "gx": 0.5, "4-5": 2e1, "7": 9}')
    assert feature_prices(str(path), rules, FEATURES) == (3, 3, 3, 0.5, 20, 20, 1, 9)
    path = tmp_path / "prices.CSV"
    path.write_text('\ufeffsensor,price\n"accelerometer", 3\n\nload,9\n', encoding="utf-8")
    assert feature_prices(str(path), rules, FEATURES) == (3, 3, 3, 1, 1, 1, 1, 9)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", '{"wind": 2}', "no input feature 'wind': expected one of 'ax', 'ay'"),
        ("p.json", '{"ax": -2}', "'ax': expected a price above 0, got -2"),
        ("p.json", '{"ax": 0}', "'ax': expected a price above 0, got 0"),
        ("p.json", '{"ax": NaN}', "NaN"),
        ("p.json", '{"ax": true}', "'ax': expected a price above 0, got True"),
        ("p.json", '{"ax": 1, "0": 2}', "'0': expected one price for each feature, got a second one for 0"),
        ("p.json", '{"8": 1}', "expected features from 0 to 7, got 8"),
        ("p.json", "[1, 2]", "expected an object of prices by feature, got list"),
        ("p.json", "{}", "expected a feature and its price at least, got none"),
        ("p.csv", "feature,price\n", "expected a feature and its price at least, got none"),
        ("p.csv", "ax,1,2\n", "expected a feature and its price in each line, got 'ax,1,2'"),
        ("p.csv", "ax,1\nay,nan\n", "'ay': expected a price above 0, got nan"),
        ("p.csv", "ax,1\nay,dear\n", "'ay': expected a price above 0, got 'dear'"),
        ("p.csv", "ax,dear\nay,1\n", "'ax': expected a price above 0, got 'dear'"),
        ("p.csv", 'ax,"1\n', "expected lines of a feature and its price"),
        ("p.csv", b"\xff\xfe,1", "expected lines of a feature and its price"),
        ("p.txt", "ax,1", "expected a number above 0, or a .csv or .json file of them, got"),
    ],
)
def test_prices_that_make_no_sense_are_refused(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        feature_prices(str(path), FeatureRules(), FEATURES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["-4", "0", "nan", "inf", "four"])
def test_a_price_is_a_number_above_0(text: str) -> None:
    with pytest.raises(InputError, match="--feature-price: expected a"):
        feature_prices(text, FeatureRules(), FEATURES)


def test_a_plan_removes_the_dearer_of_two_equal_features() -> None:
    net = table()
    with torch.no_grad():
        net[0].weight[:, 1] = net[0].weight[:, 0]
    program = edgeprune.capture(net, torch.randn(2, 8))
    for dear, kept in ((0, 1), (1, 0)):
        prices = tuple(9.0 if index == dear else 1.0 for index in range(8))
        graph = edgeprune.analyze(program, inputs=True, rules=FeatureRules(prices=prices))
        [features] = edgeprune.plan(program, graph, keep_macs=None, n_features=7).inputs.values()
        assert dear not in features.keep and kept in features.keep


# -- as a user types it ------------------------------------------------------------------------------------------------

NET = """
from torch import nn
def net(): return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
"""


@pytest.fixture(scope="module")
def model(sources: Path) -> str:
    """The checkpoint of a network on the table."""
    (sources.parent / "net.py").write_text(NET)
    out = str(sources.parent / "model.pt")
    command = ["train", "--arch", f"{sources.parent / 'net.py'}:net", "--data", f"csv:{sources}?target=state"]
    assert main([*command, "--epochs", "12", "--lr", "0.01", "--threads", "1", "--out", out]) == 0
    return out


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("budget", [("--keep-macs", "0.3", "--max-drop", "5"), ("--max-size", "1.3kB")])
def test_compress_lets_features_and_channels_share_what_it_may_cost(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: tuple[str, ...]
) -> None:
    capsys.readouterr()
    how = "--finetune-epochs 3 --feature-price 3 --align 1 --threads 1 --json --out".split()
    assert main(["compress", model, *budget, *how, str(tmp_path / "run")]) == 0
    record = json.loads(capsys.readouterr().out)
    if "--max-size" in budget:
        assert record["slim"]["onnx_bytes"] <= 1300
    else:
        assert record["slim"]["macs"] <= 0.3 * record["dense"]["macs"]
    assert 2 <= len(record["features"]["keep"]) < 8 and record["widths"][0]["after"] < 24
    assert record["slim"]["val_accuracy"] > 0.9
    counts = [point["n_features"] for point in record["selection"]]
    assert len(counts) % 3 == 0 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--feature-price", "-4"), "--feature-price: expected a price above 0, got -4"),
        (
            ("--feature-price", "2", "--input-features", "off"),
            "--feature-price: expected --input-features auto, a count",
        ),
    ],
)
def test_bad_prices_are_one_line_and_exit_2(model: str, tmp_path: Path, capsys, options, message: str) -> None:
    capsys.readouterr()
    assert main(["compress", model, *options, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Attending(nn.Module):
    """A series of six sensors, read step by step by one layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv1d(6, 16, 1), nn.BatchNorm1d(16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.norm(self.embed(x)).transpose(1, 2)).mean(1))


def test_a_transformer_is_cut_in_all_its_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = rng.normal(size=(240, 6, 5)) + (np.arange(6) == 1)[None, :, None] * 3 * (y - 1)[:, None, None]
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32), y=y)
    series = open_data(f"npz:{tmp_path / 'x.npz'}")
    dense = edgeprune.capture(Attending(), torch.randn(2, 6, 5))
    settings = TrainSettings(epochs=4, lr=3e-3, batch_size=32, threads=1)
    trainer = DataTrainer(series, series.normalization, settings, CLASSIFICATION)
    manner = Manner("taylor", 1, features=True, rules=FeatureRules(prices=(200.0,) * 6), reconstruct=True)
    step = Step(Cutter(dense, manner, trainer), trainer, Silent())
    step.begin()
    [best] = Shrink().search(step, Budgets(keep_macs=0.35, prune_features=True)).networks
    assert best.macs <= 0.35 * step.dense.macs and best.plan is not None and not best.plan.exact
    assert len(step.records) == 1  # all at once, and nothing is left for a second cut
    widths = {group.name: (group.before, group.after) for group in best.plan.groups}
    assert len(widths) == 4 and all(after < before for before, after in widths.values()), widths
    [sensors] = best.plan.inputs.values()
    assert 1 in sensors.keep and best.val_value is not None and best.val_value > 0.8


def test_the_aim_of_another_judge_goes_as_far_as_it_can(data: DataSource) -> None:
    """Where a search says what it may cost, what cannot be reached is its own to tell."""
    net = table()
    graph = edgeprune.analyze(edgeprune.capture(net, torch.randn(2, 8)), inputs=True)
    aim = Aim((Limit("the MACs", macs_model(graph), 0.001),))
    settings = TrainSettings(epochs=1, threads=1, method="shared-budget")
    fit(net, data, data.normalization, settings, graph=graph, aim=aim)
    slim, n_features = without_dead(edgeprune.capture(net, torch.randn(2, 8)))
    assert n_features == 1 and macs(slim) == 1 + 4
