"""Induced feature selection: chosen while training, within the rules that the user gives, cut out and proved."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.graph.capture import Program
from edgeprune.importance import least_features
from edgeprune.pruning.dead_units import plan_dead
from edgeprune.pruning.feature_rules import feature_rules, kept_groups, named_groups
from edgeprune.pruning.slim_inputs import gathered
from edgeprune.records import DataSource, ModelInfo
from edgeprune.settings import FeatureRules, TrainSettings
from edgeprune.training import fit
from tests.sensors import NAMES, sensors_in


def table() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return edgeprune.capture(net.double(), torch.randn(2, 8, dtype=torch.float64))


def sensors() -> Program:
    """Nine channels of a series, read by a convolution over time."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(9, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return edgeprune.capture(net.double(), torch.randn(2, 9, 20, dtype=torch.float64))


def kept(program: Program, rules: FeatureRules, n_features: int) -> tuple[int, ...]:
    """The features that a plan within the rules keeps; the cut is proved."""
    graph = edgeprune.analyze(program, inputs=True, rules=rules)
    plan = edgeprune.plan(program, graph, keep_macs=None, n_features=n_features)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    [features] = plan.inputs.values()
    assert features == gathered(slim)
    return features.keep


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [table, sensors])
def test_features_that_are_always_kept_stay(build: type) -> None:
    program = build()
    free = kept(program, FeatureRules(), 3)
    stays = tuple(sorted(set(range(8)) - set(free)))[:2]
    found = kept(program, FeatureRules(always_keep=stays), 3)
    assert len(found) == 3
    assert set(stays) < set(found)


def test_only_the_features_that_are_always_kept_can_be_left() -> None:
    assert kept(table(), FeatureRules(always_keep=(1, 6)), 2) == (1, 6)


@pytest.mark.parametrize(("n_features", "n_left"), [(6, 6), (5, 3), (3, 3)])
def test_features_of_one_sensor_go_together(n_features: int, n_left: int) -> None:
    axes = ((0, 3, 6), (1, 4, 7), (2, 5, 8))
    found = set(kept(sensors(), FeatureRules(together=axes), n_features))
    assert len(found) == n_left
    assert all(set(group) <= found or not set(group) & found for group in axes)


def test_a_sensor_with_an_axis_that_always_stays_stays_whole() -> None:
    found = kept(sensors(), FeatureRules(always_keep=(4,), together=((3, 4, 5),)), 4)
    assert {3, 4, 5} < set(found)
    assert len(found) == 4


def test_a_slim_network_is_cut_again_within_the_same_rules() -> None:
    """Channels that nothing reads any more are still counted as channels."""
    dense, rules = sensors(), FeatureRules(always_keep=(8,), together=((0, 1), (2, 3), (4, 5)))
    graph = edgeprune.analyze(dense, inputs=True, rules=rules)
    slim = edgeprune.cut(dense, edgeprune.plan(dense, graph, keep_macs=None, n_features=6), graph)
    before = gathered(slim)
    after = kept(slim, rules, 3)
    assert before is not None
    assert before.dim == 1
    assert set(after) < set(before.keep)
    assert 8 in after
    assert all((first in after) == (second in after) for first, second in rules.together)


@pytest.mark.parametrize(
    ("build", "together", "least"),
    [
        (table, (), 1),
        (table, ((0, 1, 2),), 1),
        (table, ((0, 1, 2), (3, 4, 5, 6, 7)), 3),
        (sensors, ((0, 3, 6), (1, 4, 7), (2, 5, 8)), 3),
    ],
)
def test_the_fewest_features_leave_each_layer_something_to_read(build, together, least) -> None:
    program, rules = build(), FeatureRules(together=together)
    graph = edgeprune.analyze(program, inputs=True, rules=rules)
    assert least_features(graph) == least
    assert len(kept(program, rules, least)) == least
    n_all = graph.n_features
    with pytest.raises(InputError, match=f"input features: expected to keep {least} to {n_all}, got {least - 1}"):
        kept(program, rules, least - 1)


def weighted(importances: list[float]) -> Program:
    """A table whose columns have weights of these sizes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(len(importances), 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(importances) * torch.where(torch.randn_like(net[0].weight) > 0, 1.0, -1.0))
    return edgeprune.capture(net, torch.randn(2, len(importances), dtype=torch.float64))


@pytest.mark.parametrize(
    ("n_features", "found"),
    [
        (8, (0, 1, 2, 3, 4, 5, 7, 8)),
        (7, (0, 1, 2, 3, 4, 5, 8)),
        (6, (0, 1, 2, 3, 4, 5)),
        (5, (0, 1, 2, 7, 8)),  # the second group no longer fits, and the best of the rest do
        (4, (0, 1, 2, 8)),
        (3, (0, 1, 2)),
        (2, (7, 8)),  # not even the best group fits
        (1, (8,)),
    ],
)
def test_what_does_not_fit_is_skipped_and_the_best_of_the_rest_fills_up(n_features: int, found: tuple[int]) -> None:
    program = weighted([9, 9, 9, 8, 8, 8, 1, 2, 3])
    assert kept(program, FeatureRules(together=((0, 1, 2), (3, 4, 5))), n_features) == found


def test_groups_alone_fill_as_much_as_they_can() -> None:
    program = weighted([20, 20, 20, 8, 8, 1, 1])
    rules = FeatureRules(together=((0, 1, 2), (3, 4), (5, 6)))
    assert [kept(program, rules, n) for n in (6, 4, 2)] == [(0, 1, 2, 3, 4), (0, 1, 2), (3, 4)]


class Beside(nn.Module):
    """A row of a table and a series of one channel, which cannot go."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Conv1d(1, 8, 3), nn.Linear(6, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, series: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.see(series).relu().mean(2), self.read(row).relu()], dim=1))


def test_features_of_one_input_of_several_go_as_far_as_the_drop_allows(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", series=rng.normal(size=(60, 1, 9)), row=rng.normal(size=(60, 6)))
    torch.export.save(edgeprune.capture(Beside(), (torch.randn(2, 1, 9), torch.randn(2, 6))), tmp_path / "net.pt2")
    given = ["compress", str(tmp_path / "net.pt2"), "--data", f"npz:{tmp_path / 'x.npz'}", "--finetune-epochs", "0"]
    given += [
        "--out",
        str(tmp_path / "run"),
        "--max-drop",
        "99",
        "--keep-macs",
        "0.5",
        "--align",
        "1",
        "--threads",
        "1",
    ]
    assert main(given) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    kept = {one["input"]: (one["features"]["size"], len(one["features"]["keep"])) for one in record["inputs"]}
    assert kept["series"] == (1, 1) and kept["row"][0] == 6 and 1 <= kept["row"][1] < 6 and record["features"] is None
    assert record["steps"][-1]["n_features"] == 1 + kept["row"][1]
    assert main([*given, "--force", "--input-features", "1"]) == 2
    assert "--input-features: expected 2 to 7 (of input row), got 1" in capsys.readouterr().err


def test_a_dead_feature_stays_where_it_is_always_kept() -> None:
    module = table().module()
    module.get_parameter("0.weight").data[:, [2, 5]] = 0
    program = edgeprune.capture(module, torch.randn(2, 8, dtype=torch.float64))
    plan = plan_dead(program, inputs=True, rules=FeatureRules(always_keep=(5,)))
    assert plan is not None
    [features] = plan.inputs.values()
    assert features.keep == (0, 1, 3, 4, 5, 6, 7)


def test_names_numbers_and_ranges(tmp_path: Path) -> None:
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"accelerometer": ["ax", "ay", "az"], "gyroscope": [3, "gy", "5"]}))
    rules = feature_rules("load,0-1", str(groups), NAMES, 8)
    assert rules == FeatureRules((0, 1, 7), ((0, 1, 2), (3, 4, 5)), ("accelerometer", "gyroscope"))
    groups.write_text('[[0, 1], ["2-4", 6], "5, 7"]')
    assert feature_rules(None, str(groups), (), 8) == FeatureRules((), ((0, 1), (2, 3, 4, 6), (5, 7)))
    groups.write_text('{"all": "ax,gx-gy,4-5"}')
    assert feature_rules(None, str(groups), ("ax", "gx-gy", "c", "d", "e", "f"), 6).together == ((0, 1, 4, 5),)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("c,d", (1,)),
        ("a b, c,d", (0, 1)),
        ("c,d,5,a b", (0, 1, 5)),
        ("d,c", (2, 3)),
        ("e, f,,g", (4,)),
        ("1-2,c,d", (1, 2)),
        ("7,e, f,,g,d,a b", (0, 3, 4, 7)),
    ],
)
def test_a_name_may_have_commas(tmp_path: Path, asked: str, found: tuple[int, ...]) -> None:
    names = ("a b", "c,d", "c", "d", "e, f,,g", "h", "i", "j")
    assert feature_rules(asked, None, names, 8).always_keep == found
    (tmp_path / "groups.json").write_text(json.dumps([asked, ["h", "i"]] if 5 not in found else [asked]))
    assert feature_rules(None, str(tmp_path / "groups.json"), names, 8).together[0] == found
    with pytest.raises(InputError, match=re.escape("'e, f': expected one of 'a b', 'c,d', 'c', 'd', 'e, f,,g'")):
        feature_rules(None, str(groups_of(tmp_path, ["e, f"])), names, 8)


def groups_of(folder: Path, *groups: list[str]) -> Path:
    path = folder / "other.json"
    path.write_text(json.dumps(groups))
    return path


def test_the_names_of_groups_are_kept(tmp_path: Path) -> None:
    rules = FeatureRules((), ((0, 2), (3,)), ("sensor é", "b"))
    info = ModelInfo((4,), feature_groups=named_groups(rules))
    assert info_from_dict(json.loads(json.dumps(info_to_dict(info)))) == info
    assert kept_groups(info, (2, 1), ("z", "y")) == {"sensor é": ["z"]}
    assert named_groups(FeatureRules((), ((0, 1),))) == () and named_groups(None) == ()
    for wrong in ([["a", [0]]], {"a": 3}, {"a": [-1]}, {"a": ["x"]}):
        with pytest.raises(InputError, match="model info: expected feature_groups as lists of numbers by name"):
            info_from_dict({"feature_groups": wrong, "input_shape": [4]})


@pytest.mark.parametrize(
    ("always_keep", "groups", "message"),
    [
        ("wind", None, "no input feature 'wind': expected one of 'ax', 'ay'"),
        ("8", None, "expected features from 0 to 7, got 8"),
        ("5-3", None, "expected features from 0 to 7, got 5-3"),
        (" , ", None, "expected features separated by commas, got none"),
        (None, "{", "expected a JSON file of feature groups"),
        (None, "7", "expected a list or an object of groups, got int"),
        (None, '{"a": []}', "'a': expected a list of feature names or numbers"),
        (None, '{"a": [true]}', "'a': expected feature names or numbers, got True"),
        (None, '{"a": ["ax"], "b": [0, 1]}', "'b': expected features of no other group, got 0, which 'a' has"),
        (None, '[["0-8"]]', "group 0: expected features from 0 to 7, got 0-8"),
        (None, '{"a": [0.5]}', "'a': expected feature names or numbers, got 0.5"),
        (None, "[" * 100_000, "expected a JSON file of feature groups"),
    ],
)
def test_rules_that_make_no_sense_are_refused(
    tmp_path: Path, always_keep: str | None, groups: str | None, message: str
) -> None:
    path = tmp_path / "groups.json"
    if groups is not None:
        path.write_text(groups)
    with pytest.raises(InputError, match=message):
        feature_rules(always_keep, str(path) if groups is not None else None, NAMES, 8)


# -- while training ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sensors_in(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def data(sources: Path) -> DataSource:
    return open_data(f"csv:{sources}?target=state")


def selected(
    data: DataSource, rules: FeatureRules | None = None, least: float = 0.9, **options: object
) -> tuple[nn.Module, list[int]]:
    """A network trained while features are chosen, and the features whose columns are not zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    program = edgeprune.capture(net, torch.randn(2, 8))
    graph = edgeprune.analyze(program, inputs=True, rules=rules)
    settings = TrainSettings(
        epochs=12,
        lr=1e-2,
        batch_size=32,
        threads=1,
        method="feature-selection",
        options=options,  # type: ignore[arg-type]
    )
    module = program.module()
    epochs = fit(module, data, data.normalization, settings, graph=graph)
    columns = module.get_parameter("0.weight").abs().sum(0)
    found = torch.nonzero(columns).flatten().tolist()
    counts = [epoch.n_features or 0 for epoch in epochs]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == len(found)
    assert epochs[-1].val_value > least
    return module, found


@pytest.mark.parametrize(("n_features", "n_left"), [(4, 4), (2, 2), (7, 7)])
def test_training_fills_up_with_what_fits_beside_groups(data: DataSource, n_features: int, n_left: int) -> None:
    rules = FeatureRules(together=((0, 1, 4), (2, 3, 5)))  # the first tells most, then there is room for one of two
    _, found = selected(data, rules, least=0.2, n_features=n_features)
    assert len(found) == n_left
    assert all(set(group) <= set(found) or not set(group) & set(found) for group in rules.together)


def test_training_keeps_the_features_that_tell_the_class_and_no_copy_of_them(data: DataSource) -> None:
    _, found = selected(data, n_features=2)
    assert found in ([0, 4], [2, 4])


@pytest.mark.parametrize(("dear", "kept"), [(0, [2, 4]), (2, [0, 4])])
def test_of_two_features_that_tell_the_same_the_dearer_goes(data: DataSource, dear: int, kept: list[int]) -> None:
    prices = tuple(100.0 if index == dear else 1.0 for index in range(8))
    _, found = selected(data, FeatureRules(prices=prices), n_features=2)
    assert found == kept


def test_rules_hold_while_training(data: DataSource) -> None:
    _, found = selected(data, FeatureRules(always_keep=(6,), together=((0, 1), (2, 3))), n_features=4)
    assert 6 in found
    assert 4 in found
    assert len(found) == 4
    assert ([0, 1] == found[:2]) != ([2, 3] == found[:2])


@pytest.mark.parametrize(
    ("rules", "n_features", "message"),
    [
        (FeatureRules(always_keep=(0, 1, 2)), 2, "expected to keep 3 to 8, got 2"),
        (None, 9, "expected to keep 1 to 8, got 9"),
        (FeatureRules(always_keep=(8,)), 2, "expected features below 8, got 8"),
    ],
)
def test_numbers_of_features_that_cannot_be(
    data: DataSource, rules: FeatureRules | None, n_features: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        selected(data, rules, n_features=n_features)


def test_a_network_without_input_features_is_refused(data: DataSource) -> None:
    net = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(24, 4))
    settings = TrainSettings(epochs=1, threads=1, method="feature-selection", options={"n_features": 4})
    with pytest.raises(InputError, match="expected a network with input features that can be removed, got none"):
        fit(net, data, data.normalization, settings)


def test_the_number_of_features_must_be_said(data: DataSource) -> None:
    with pytest.raises(InputError, match="expected n_features, 1 to 8, got none"):
        selected(data)


# -- as a user types it --------------------------------------------------------------------------------------------

NET = """
from torch import nn
def net(): return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
"""


@pytest.fixture(scope="module")
def trained(sources: Path) -> tuple[str, str]:
    """The checkpoint of a network on the table, and its data."""
    (sources.parent / "net.py").write_text(NET)
    spec, out = f"csv:{sources}?target=state", str(sources.parent / "model.pt")
    arch = f"{sources.parent / 'net.py'}:net"
    command = ["train", "--arch", arch, "--data", spec, "--epochs", "20", "--lr", "0.01", "--threads", "1"]
    assert main([*command, "--out", out]) == 0
    return out, spec


def run(capsys: pytest.CaptureFixture[str], model: str, *options: str) -> dict[str, object]:
    capsys.readouterr()
    assert (
        main(["compress", model, "--finetune-epochs", "6", "--align", "1", "--threads", "1", *options, "--json"]) == 0
    )
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_auto_finds_the_columns_that_are_needed(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained
    out = tmp_path / "run"
    record = run(capsys, model, "--max-drop", "4", "--out", str(out))
    assert record["features"]["keep"] in ([0, 4], [2, 4])  # type: ignore[index]
    counts = [point["n_features"] for point in record["selection"]]  # type: ignore[index,attr-defined]
    assert min(counts) <= 2
    assert "Accuracy while they became fewer" in (out / "report.html").read_text()
    again = run(capsys, model, "--plan", str(out / "plan.json"), "--out", str(tmp_path / "again"))
    assert again["features"] == record["features"]


def test_columns_by_name_are_kept_or_go_together(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained
    groups = tmp_path / "groups.json"
    groups.write_text('{"accelerometer": ["ax", "ay", "az"], "gyroscope": ["gx", "gy", "gz"]}')
    out = tmp_path / "run"
    options = ("--input-features", "7", "--always-keep", "load", "--feature-groups", str(groups), "--max-drop", "5")
    record = run(capsys, model, *options, "--out", str(out))
    assert record["features"]["keep"] == [0, 1, 2, 3, 4, 5, 7]  # type: ignore[index]
    assert main(["export", "--onnx", str(out / "slim.pt2"), "--out", str(out), "--force"]) == 0
    facts = json.loads((out / "features.json").read_text())
    assert facts["names"] == ["ax", "ay", "az", "gx", "gy", "gz", "load"]
    assert facts["groups"] == {"accelerometer": ["ax", "ay", "az"], "gyroscope": ["gx", "gy", "gz"]}
    assert "accelerometer: 3 of 3" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--always-keep", "wind"), "no input feature 'wind': expected one of 'ax', 'ay', 'az'"),
        (
            ("--always-keep", "ax", "--input-features", "off"),
            "expected --input-features auto, a count or a ratio, got off",
        ),
        (("--always-keep", "0-4", "--input-features", "3"), "expected 5 to 8"),
        (
            ("--feature-groups", "missing.json"),
            "missing.json: expected a JSON file of feature groups, got nothing there",
        ),
        (("--always-keep", "ax", "--plan", "plan.json"), "expected a choice of features, got --plan plan.json"),
    ],
)
def test_bad_rules_are_one_line_and_exit_2(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    model, _ = trained
    plan = tmp_path / "plan.json"
    plan.write_text('{"format": "edgeprune-plan/1", "source_sha256": "", "tensors": {}}')
    options = tuple(str(plan) if option == "plan.json" else option for option in options)
    capsys.readouterr()
    assert main(["compress", model, *options, "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert message.replace("plan.json", str(plan)) in captured.err if "--plan" in options else message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "run").exists()
