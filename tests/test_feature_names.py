"""Names of features of several inputs: from data of every form into rules, report, features.json and the C header."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.commands.compress import compress
from edgeprune.commands.export import export
from edgeprune.data import open_data
from edgeprune.data.batching import check_fits
from edgeprune.data.fitting import with_inputs_of
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.graph.capture import Program
from edgeprune.records import DataSource, ModelInfo
from edgeprune.report.features import shown_inputs
from edgeprune.requests import CompressRequest, ExportRequest

STEPS, N = 8, 240
SENSORS, COLUMNS = ("gyroscope", "humidity", "light", "gas"), ("width", "mass, dry", "gas")
CLASSES = np.arange(N) % 2
SERIES = np.random.default_rng(0).normal(size=(N, STEPS, 4)).astype(np.float32) * np.float32([1, 10, 100, 1000])
TABLE = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
SERIES[:, :, 0] += 2 * CLASSES[:, None]
TABLE[:, 1] += 2 * CLASSES
NAMES = {"series": SENSORS, "table": COLUMNS}


class Two(nn.Module):
    """Steps of sensors, and a row."""

    def __init__(self) -> None:
        super().__init__()
        self.series, self.table, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, series: Tensor, table: Tensor) -> Tensor:
        return self.head(torch.relu(torch.tanh(self.series(series)).mean(1) + self.table(table)))


def saved(folder: Path, **beside: Any) -> str:
    np.savez(folder / "x.npz", series=SERIES, table=TABLE, y=CLASSES, **beside)
    return f"npz:{folder / 'x.npz'}"


def named(folder: Path) -> str:
    return saved(folder, feature_names_series=np.array(SENSORS), feature_names_table=np.array(COLUMNS))


def program() -> Program:
    torch.manual_seed(0)
    return edgeprune.capture(Two(), (torch.randn(2, STEPS, 4), torch.randn(2, 3)))


def made(folder: Path, body: str) -> str:
    """A factory that returns what the body says."""
    source = f"import numpy as np\nheld = np.load({str(folder / 'x.npz')!r})\nNAMES = {NAMES!r}\n"
    inputs = "x = {'series': held['series'], 'table': held['table']}\ny = held['y']\n"
    (folder / "own.py").write_text(f"{source}{inputs}def made():\n    {body}\n")
    return f"{folder / 'own.py'}:made"


def check_names(data: DataSource) -> None:
    assert data.input_feature_names == tuple(NAMES.items())
    assert [info.feature_dim for info in data.inputs] == [2, 1]
    assert [own.dim for _, own in data.normalization.inputs] == [2, 1]
    assert data.normalization.inputs[0][1].std[3] > 500


def test_arrays_name_the_features_of_each_input(tmp_path: Path) -> None:
    data = open_data(named(tmp_path))
    check_names(data)
    assert [info.name for info in data.inputs] == ["series", "table"]
    check_names(with_inputs_of(data, program()))


@pytest.mark.parametrize(
    "body",
    [
        "return {**x, 'y': y, 'feature_names': NAMES}",
        "return {'train': (x, y), 'val': (x, y), 'test': (x, y), 'feature_names': NAMES}",
        "return {**x, 'y': y, 'feature_names_series': NAMES['series'], 'feature_names_table': NAMES['table']}",
    ],
)
def test_a_factory_does_so_by_a_dict(tmp_path: Path, body: str) -> None:
    saved(tmp_path)
    check_names(open_data(made(tmp_path, body)))


def test_some_inputs_may_have_none(tmp_path: Path) -> None:
    data = open_data(saved(tmp_path, feature_names_table=np.array(COLUMNS)))
    assert data.input_feature_names == (("table", COLUMNS),) and data.inputs[0].feature_names == ()


def test_the_only_input_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", series=SERIES, y=CLASSES, feature_names=np.array(SENSORS))
    data = open_data(f"npz:{tmp_path / 'x.npz'}")
    assert (data.inputs[0].feature_names, data.inputs[0].feature_dim) == (SENSORS, 2)
    alone = edgeprune.capture(nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(16, 2)), torch.randn(2, STEPS, 4))
    np.savez(tmp_path / "x.npz", input=SERIES, y=CLASSES, feature_names_input=np.array(SENSORS))
    plain = with_inputs_of(open_data(f"npz:{tmp_path / 'x.npz'}"), alone)
    assert (plain.inputs, plain.feature_names, plain.feature_dim) == ((), SENSORS, 2)
    np.savez(tmp_path / "x.npz", x=SERIES, y=CLASSES, feature_names_x=np.array(SENSORS))
    assert open_data(f"npz:{tmp_path / 'x.npz'}").feature_names == SENSORS


@pytest.mark.parametrize(
    ("beside", "fragment"),
    [
        (
            {"feature_names": np.array(SENSORS)},
            "expected the names of each input's features, feature_names_series, feature_names_table (of a factory a "
            "dict of them by input), got feature_names beside inputs series, table",
        ),
        (
            {"feature_names_row": np.array(SENSORS)},
            "expected feature_names_NAME of an input (series, table), got 'row'",
        ),
        (
            {"feature_names_table": np.array(SENSORS)},
            "input table: expected 3 feature names for inputs (3,), got 4",
        ),
        ({"feature_names_table": np.array(["a", "a", "b"])}, "expected each of feature_names_table once, got 'a' more"),
        ({"feature_names_table": np.arange(3)}, "expected feature_names_table as texts (n,), got int64 (3,)"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, beside: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)):
        open_data(saved(tmp_path, **beside))
    values = {key: value.tolist() for key, value in beside.items()}
    with pytest.raises(InputError, match=re.escape(fragment)):
        open_data(made(tmp_path, f"return {{'train': (x, y), 'val': (x, y), 'test': (x, y), **{values}}}"))


def test_a_model_keeps_them_and_other_data_are_refused(tmp_path: Path) -> None:
    data = open_data(named(tmp_path))
    info = ModelInfo((), classes=data.classes, input_feature_names=data.input_feature_names)
    assert info_from_dict(info_to_dict(info)) == info
    assert "input_feature_names" not in info_to_dict(ModelInfo((3,)))
    with pytest.raises(InputError, match="expected input_feature_names by input, got 3"):
        info_from_dict({**info_to_dict(info), "input_feature_names": 3})
    check_fits(data, info, 2)
    other = replace(info, input_feature_names=(("table", ("width", "gas", "mass, dry")),))
    with pytest.raises(InputError, match="input table: feature 1 differs from the model's: expected 'gas', got 'mass"):
        check_fits(data, other, 2)
    with pytest.raises(InputError, match="input table: expected 2 feature names as the model has, got 3"):
        check_fits(data, replace(info, input_feature_names=(("table", ("width", "gas")),)), 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of both inputs, and its data."""
    folder = tmp_path_factory.mktemp("names")
    named(folder)
    torch.export.save(program(), folder / "two.pt2")
    return folder


def request(place: Path, **asked: Any) -> CompressRequest:
    fields: dict[str, Any] = {
        "data": f"npz:{place / 'x.npz'}", "out": str(place / "run"), "allow_chance": True, "align": 1, "threads": 1,
        "normalize": "data", "input_features": 4, "finetune_epochs": 0, "keep_macs": 0.9, "force": True,
    }  # fmt: skip
    return CompressRequest(str(place / "two.pt2"), **{**fields, **asked})


def test_they_reach_rules_and_all_that_is_written(place: Path) -> None:
    (place / "groups.json").write_text(json.dumps({"air": ["series.humidity", "series.gas", "table.gas"]}))
    _, run = compress(
        request(place, feature_groups=str(place / "groups.json"), always_keep="table.mass, dry", input_features="4")
    )
    kept = {one.input: one.features.keep for one in run.inputs}
    assert 1 in kept["table"] and sum(map(len, kept.values())) <= 4
    assert ({1, 3} <= set(kept["series"])) == (2 in kept["table"]) == bool({1, 3} & set(kept["series"]))
    shown = {one.of: one for one in shown_inputs(run)}
    assert shown[" of series"].names == tuple(SENSORS[index] for index in kept["series"])
    assert shown[" of table"].names == tuple(COLUMNS[index] for index in kept["table"])
    n_air = 2 * (2 in kept["table"])
    assert shown[" of series"].groups == (f"air: {n_air} of 2",)
    assert shown[" of table"].groups == (f"air: {n_air // 2} of 1",)
    assert "mass, dry" in (place / "run" / "report.html").read_text()
    export(ExportRequest(str(place / "run" / "slim.pt2"), targets=("c-header",), data=f"npz:{place / 'x.npz'}"))
    contracts = json.loads((place / "run" / "features.json").read_text())["contracts"]
    for contract, wanted in (("full", {name: range(len(own)) for name, own in NAMES.items()}), ("slim", kept)):
        for taken in contracts[contract]["inputs"]:
            own = NAMES[taken["name"]]
            assert taken["feature_names"] == [own[index] for index in wanted[taken["name"]]]
    header = (place / "run" / "edgeprune_features.h").read_text()
    assert "edgeprune_input1_feature_names" in header and '"mass, dry"' in header


@pytest.mark.parametrize(
    ("asked", "fragment"),
    [
        ("gas", "--always-keep: no input feature 'gas': expected one of 'series.gyroscope', 'series.humidity'"),
        ("2", "--always-keep: no input feature '2': expected one of 'series.gyroscope'"),
    ],
)
def test_a_name_that_says_no_input_is_refused(place: Path, asked: str, fragment: str) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)):
        compress(request(place, always_keep=asked))


def test_prices_are_of_any_input(place: Path) -> None:
    """What costs much goes, by whatever input it comes."""
    n_kept = {}
    for dear in NAMES:
        (place / "prices.json").write_text(json.dumps({f"{dear}.{name}": 50 for name in NAMES[dear]}))
        _, run = compress(
            request(place, feature_price=str(place / "prices.json"), input_features="auto", keep_macs=0.6)
        )
        left = {one.input: len(one.features.keep) for one in run.inputs}
        n_kept[dear] = {name: left.get(name, len(own)) for name, own in NAMES.items()}
    assert n_kept["series"]["series"] < n_kept["table"]["series"]
    assert n_kept["table"]["table"] < n_kept["series"]["table"]


def test_a_price_of_what_no_input_has_is_refused(place: Path) -> None:
    (place / "prices.json").write_text('{"2": 5}')
    with pytest.raises(InputError, match=r"prices.json: no input feature '2': expected one of 'series.gyroscope'"):
        compress(request(place, feature_price=str(place / "prices.json")))
