"""scripts/reproduce on a few samples: what it writes, what it leaves out, what it refuses; and the parts of it."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.progress import Silent
from edgeprune.versions import processor

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--quick", "--seeds", 1)
PNG = b"\x89PNG\r\n\x1a\n"


def reproduce(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as a developer does."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts" / "reproduce"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.fixture
def asked(part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process, which has torch already: its exit code, and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
        capsys.readouterr()
        return (part("command").main(), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a quick look at some contenders on the digits, and the run that made it."""
    folder = tmp_path_factory.mktemp("reproduce")
    places = ("--out", folder / "runs.jsonl", "--docs", folder)
    return folder, reproduce("induced-digits", *QUICK, "--only", "dense|random", *places)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of the package beside the script."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield lambda name: importlib.import_module(f"reproduction.{name}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the command ------------------------------------------------------------------------------------------------------


def test_runs_give_a_document_and_a_chart(quick: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Every run is written down, the figures are summed up for each contender, and the chart is drawn."""
    folder, run = quick
    assert run.returncode == 0, run.stderr
    assert [(line["contender"], line["at"]) for line in lines(folder / "runs.jsonl")] == [
        ("dense", None),
        ("random", 32),
    ]
    document = json.loads((folder / "results" / "induced-digits.json").read_text())
    rows = {row["name"]: row for row in document["contenders"]}
    assert document["quick"] and document["epochs"] == 2 and document["versions"]["torch"]
    assert rows["random"]["figures"]["n_features"]["mean"] == 32 and rows["random"]["goal"] == "32 features"
    assert 0 < rows["dense"]["figures"]["test_accuracy"]["mean"] < 1
    assert rows["random"]["figures"]["params_share"]["mean"] == pytest.approx(42_634 / 50_826, abs=1e-6)
    assert rows["induced"]["runs"] == []
    assert [one["cpu"] for one in document["machines"]] == [processor()] and document["test_samples"] == 256
    assert str(ROOT) not in json.dumps(document)
    assert (folder / "results" / "induced-digits.png").read_bytes().startswith(PNG)


def test_the_page_has_what_was_measured_and_what_was_not(quick: tuple[Path, Any], asked: Any) -> None:
    """A quick look is told from a result, and an experiment without results says so."""
    folder = quick[0]
    assert asked("--tables", "--docs", folder)[0] == 0
    page = (folder / "REPRODUCTION.md").read_text()
    assert "| random pixels | 32 features |" in page and "| induced | 32 features | not run |" in page
    assert "a quick look only: no result" in page and "![Induced features on small images" in page
    section = page.partition("## xrda-vgg16")[2]
    assert "not run; `scripts/reproduce xrda-vgg16` does it on a machine with a GPU" in section
    for words in ("**The paper states**: ", "**What differs**: "):
        assert page.count(words) == len(list((ROOT / "scripts" / "reproduction" / "configs").iterdir()))


def test_resume_leaves_out_what_is_done(quick: tuple[Path, Any], tmp_path: Path, asked: Any) -> None:
    """The same again runs nothing, another contender runs alone; a line that a kill tore is no run."""
    path = tmp_path / "runs.jsonl"
    path.write_text((quick[0] / "runs.jsonl").read_text() + '{"experiment": "induced-')
    places = ("--out", path, "--docs", tmp_path, "--resume")
    code, out, err = asked("induced-digits", *QUICK, "--only", "dense|random|information", *places)
    assert code == 0, err
    assert out.splitlines()[0].startswith("[1/1] induced-digits: information at 32, seed 0: ")
    assert len(out.splitlines()) == 1
    assert json.loads(path.read_text().splitlines()[-1])["contender"] == "information"
    document = json.loads((tmp_path / "results" / "induced-digits.json").read_text())
    assert [len(row["runs"]) for row in document["contenders"]] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "experiment: expected one of feddst, induced-digits, induced-features, "),
        (["xrda-lenet", "--only", "nobody"], "xrda-lenet: --only: expected a part of dense, xrda, "),
        (["xrda-lenet", "--only", "["], "--only: expected a regular expression, got '['"),
        (["xrda-lenet", "--seeds", 0], "--seeds: expected at least 1, got 0"),
        (["xrda-resnet18"], "xrda-resnet18: expected a GPU for an experiment of this size, got none"),
    ],
)
def test_bad_requests_are_one_line(arguments: list[object], message: str, tmp_path: Path, asked: Any) -> None:
    """Exit 2, nothing written."""
    if "xrda-resnet18" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, out, err = asked(*arguments, "--out", tmp_path / "runs.jsonl", "--docs", tmp_path)
    assert code == 2 and out == ""
    assert err.startswith(f"reproduce: {message}") and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# -- the experiments --------------------------------------------------------------------------------------------------


def test_every_config_can_be_run(part: Callable[[str], Any], tmp_path: Path) -> None:
    """Settings, recipes and networks of all runs are there, and no two runs are the same."""
    recipes, place, experiments = part("recipes"), part("place"), part("experiments")
    runs = [run for name in experiments.names() for run in experiments.read(name).runs()]
    for run in runs:
        where = place.Place(run, open_data("digits"), place.Machine(), Silent(), tmp_path)
        assert callable(recipes.recipe_of(run))
        assert where.settings().epochs == run.train["epochs"] and where.settings().best_from == 1.0
        if "sparsity" not in run.how and run.recipe == "train":
            where.settings().check()
    for arch in {run.arch for run in runs}:
        assert (ROOT / arch.partition(":")[0]).is_file()
    assert len({run.digest for run in runs}) == len(runs) > 100


def test_a_config_says_what_is_wrong_with_it(part: Callable[[str], Any], tmp_path: Path) -> None:
    """Unknown keys, axes, recipes and settings."""
    experiments, recipes, place = part("experiments"), part("recipes"), part("place")
    text = (experiments.CONFIGS / "xrda-lenet.toml").read_text()

    def read(old: str, new: str) -> Any:
        assert old in text
        (tmp_path / "own.toml").write_text(text.replace(old, new))
        return experiments.read("own", tmp_path)

    for old, new, message in [
        ('axis = "zeros"', 'axis = "time"', "axis|goal: expected"),
        ('recipe = "one-shot"', 'recipes = "one-shot"', "contender one-shot: expected .* got 'recipes'"),
        ("epochs = 20", "epochs = 0", "epochs and seeds: expected at least 1"),
        ("seeds = 3", "seeds =", "own.toml: expected an experiment"),
    ]:
        with pytest.raises(InputError, match=message):
            read(old, new)
    with pytest.raises(InputError, match="own, contender xrda.*lam: expected a value for 90, got those for 91, 95, 98"):
        read("lam = { 90 =", "lam = { 91 =").runs()
    one_shot = next(run for run in read('recipe = "one-shot"', 'recipe = "none"').runs() if run.recipe == "none")
    with pytest.raises(InputError, match="recipe: expected one of train, one-shot, .* got 'none'"):
        recipes.recipe_of(one_shot)
    epoch = read("epochs = 20", "epochs = 20\nepoch = 2").runs()[0]
    with pytest.raises(InputError, match="train: expected .* got 'epoch'"):
        place.Place(epoch, open_data("digits"), place.Machine(), Silent(), tmp_path).settings()


RECIPES: dict[str, dict[str, Any]] = {
    "l1": {"recipe": "train", "train": {"optimizer": "sgd"}, "how": {"l1": 1e-4, "sparsity": 0.9}},
    "channels": {
        "recipe": "train",
        "train": {"optimizer": "xrda", "options": {"structure": "channel-group", "lam": 1e-3}},
        "how": {"remove": True},
    },
    "one-shot": {"recipe": "one-shot", "train": {"optimizer": "sgd"}, "how": {"sparsity": 0.9}},
    "slim": {"recipe": "induced", "train": {"method": "feature-selection"}, "how": {"keep_params": 0.1}},
    "units": {"recipe": "fewer-weights", "train": {}, "how": {"keep_params": 0.1, "structure": "channel-group"}},
    "weights": {"recipe": "fewer-weights", "train": {}, "how": {"keep_params": 0.1}},
    "templates": {
        "recipe": "in-bytes",
        "arch": "models/digits.py:cnn?width=8",
        "train": {"method": "shared-weights", "options": {"templates": 4}},
        "how": {"samples": 300},
    },
    "pretrained": {"recipe": "pretrained", "train": {"optimizer": "sgd"}, "how": {"sparsity": 0.9, "pretrain": 1}},
    "clients": {"recipe": "federated", "train": {}, "how": {"settings": {"rounds": 9, "sparsity": 0.8}}},
    "bytes": {
        "recipe": "in-bytes",
        "arch": "models/digits.py:cnn?width=8",
        "train": {},
        "how": {"keep": 0.6, "int8": True},
    },
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_reach_what_they_are_for(
    name: str, part: Callable[[str], Any], tmp_path: Path, one_thread: None
) -> None:
    """A share of zeros or of parameters, or units that went, after two epochs on some hundred digits."""
    place, experiments, recipes = part("place"), part("experiments"), part("recipes")
    base = experiments.read("induced-digits").runs(quick=True)[1]
    own = {**RECIPES[name], "train": {"epochs": 2, **RECIPES[name]["train"]}}
    run = replace(base, **own)
    where = place.Place(run, place.data_of("digits", True), place.Machine(), Silent(), tmp_path)
    figures = recipes.follow(where)
    assert 0 < figures["test_accuracy"] <= 1
    if run.recipe == "in-bytes":
        assert 0.2 < figures["bytes_share"] < 1 and figures["n_bytes"] > 1000
        assert (figures["macs_share"] == 1) == (name == "templates")
    elif run.recipe == "federated":
        assert figures["zero_share"] > 0.7 and figures["uploaded_bytes"] > 1e4
    elif "sparsity" in run.how:
        assert 0.9 <= figures["zero_share"] <= 0.9001
    elif "keep_params" in run.how:
        assert 0.08 <= figures["params_share"] <= 0.1001
        assert figures["n_features"] == (32 if name == "slim" else 64)
    else:
        assert 0 < figures["macs_share"] < 1


def test_several_widths_are_measured_one_by_one_and_with_a_gate(
    part: Callable[[str], Any], tmp_path: Path, one_thread: None
) -> None:
    place, experiments, recipes = part("place"), part("experiments"), part("recipes")
    base = experiments.read("induced-digits").runs(quick=True)[1]

    def figures(at: int, **how: Any) -> dict[str, float]:
        run = replace(base, recipe="widths", at=at, train={"epochs": 2, "lr": 5e-3}, how={"shares": [1, 0.5], **how})
        where = place.Place(run, place.data_of("digits", True), place.Machine(), Silent(), tmp_path)
        return dict(recipes.follow(where))

    whole, half = figures(0), figures(50)
    assert whole["macs_share"] == 1 and 0.35 < half["macs_share"] <= 0.5
    picked = figures(20, gate=0.8)
    assert half["macs_share"] < picked["macs_share"] < 0.9
    values = [one["val_accuracy"] for one in (half, whole)]
    assert min(values) - 0.05 <= picked["val_accuracy"] <= max(values) + 0.05
    with pytest.raises(InputError, match="at: expected one of 0, 50, got 40"):
        figures(40)


def test_a_step_is_timed_beside_that_of_sgd(part: Callable[[str], Any], tmp_path: Path, one_thread: None) -> None:
    """Its median, and the ratio with its quartiles."""
    place, experiments, recipes = part("place"), part("experiments"), part("recipes")
    base = experiments.read("induced-digits").runs(quick=True)[0]
    run = replace(base, recipe="step-time", how={"optimizer": "xrda", "options": {}})
    where = place.Place(run, place.data_of("digits", True), place.Machine(), Silent(), tmp_path)
    figures = recipes.follow(where)
    assert figures["step_ms"] > 0 and figures["sgd_step_ms"] > 0
    assert 0 < figures["step_ratio_low"] <= figures["step_ratio"] <= figures["step_ratio_high"]


class Stopping(Silent):
    """Stops the second epoch of the first training, as Ctrl-C would."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        if done > total / 2:
            raise KeyboardInterrupt


def test_a_run_goes_on_in_the_middle(part: Callable[[str], Any], tmp_path: Path, one_thread: None) -> None:
    """Stopped in the second of two epochs and resumed, it gives what it gives at once; nothing is left lying about."""
    campaign, place, experiments = part("campaign"), part("place"), part("experiments")
    experiment = experiments.read("induced-digits")
    run = experiment.run(experiment.contenders[1], 32, 0, quick=True)
    run = replace(run, train={**run.train, "epochs": 2})

    def records(folder: str, progress: Any, resume: bool) -> Any:
        return campaign.Campaign(tmp_path / folder / "runs.jsonl", place.Machine(), progress, resume).run(run)

    with pytest.raises(KeyboardInterrupt):
        records("stopped", Stopping(), False)
    assert len(list((tmp_path / "stopped" / "states").iterdir())) == 1
    resumed, whole = records("stopped", Silent(), True), records("whole", Silent(), False)
    assert resumed["status"] == "done" and resumed["figures"] == whole["figures"]
    assert resumed["figures"]["n_features"] == 32 and resumed["figures"]["macs_share"] < 1
    assert list((tmp_path / "stopped" / "states").iterdir()) == []


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_an_l1_subgradient_and_zeros_that_stay(part: Callable[[str], Any]) -> None:
    """The gradient is that of the penalised loss; what is zero stays so under SGD with momentum and weight decay."""
    sparsity = part("sparsity")
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), torch.randn(4, 6)
    with sparsity.l1_gradients(module, 0.1):
        module(x).square().sum().backward()
    got = [param.grad.clone() for param in module.parameters()]
    module.zero_grad()
    (module(x).square().sum() + 0.1 * sum(layer.weight.abs().sum() for layer in module)).backward()
    assert all(torch.allclose(one, param.grad) for one, param in zip(got, module.parameters(), strict=True))
    sparsity.drop_smallest(module, 0.6)
    assert sparsity.zero_share(module) == pytest.approx(27 / 45)
    smallest = min(float(layer.weight.detach()[layer.weight != 0].abs().min()) for layer in module)
    before = [layer.weight != 0 for layer in module]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    with sparsity.zeros_held(module):
        for _ in range(5):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(layer.weight != 0, own) for layer, own in zip(module, before, strict=True))
    assert smallest > 0 and not module[0].weight.grad[~before[0]].any()


def test_features_are_drawn_or_ranked(part: Callable[[str], Any]) -> None:
    """The informative pixels have more to say than the others, and the data hold the chosen ones alone."""
    inputs, digits = part("inputs"), open_data("digits")
    kept = inputs.informative_features(digits, 32)
    scores = inputs._information(digits)
    assert len(kept) == 32 and scores[kept].min() >= np.delete(scores, kept).max() and scores[0] < 1e-9
    draws = [inputs.random_features(digits, 32, seed) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert len(set(draws[0])) == 32 and np.isin(inputs.random_features(digits, 8, 0), draws[0]).all()
    fewer = inputs.only(digits, kept)
    x, y = fewer.test[7]
    assert fewer.input_shape == (32,) and torch.equal(x, digits.test[7][0].flatten()[kept]) and y == digits.test[7][1]


def test_units_that_a_number_of_parameters_allows(part: Callable[[str], Any]) -> None:
    """As few go as may stay: with the next share there would be too many parameters."""
    inputs = part("inputs")
    module = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    share = inputs.units_sparsity(module, 106_701)

    def count(gone: float) -> int:
        first, second = 1024 - round(gone * 1024), 512 - round(gone * 512)
        return 785 * first + (first + 1) * second + (second + 1) * 10

    assert count(share) <= 106_701 < count(share - 1 / 1024)
    with pytest.raises(InputError, match="100 parameters: expected at least"):
        inputs.units_sparsity(module, 100)


# -- strengths --------------------------------------------------------------------------------------------------------


def test_the_strength_for_a_share_is_found_in_a_few_trials(part: Callable[[str], Any]) -> None:
    """On a curve as zeros follow it, from a first guess that is far off on either side; noise does not stop it."""
    tuning = part("tuning")

    def share(strength: float) -> float:
        return 1 / (1 + math.exp(-1.5 * (math.log(strength) - math.log(2e-6))))

    for start in (1e-8, 1e-6, 1e-3):
        for wanted in (0.9, 0.95, 0.98):
            tried: list[tuple[float, float]] = []
            while (strength := tuning.next_strength(tried, wanted, start)) is not None:
                tried.append((strength, share(strength)))
            assert wanted <= tried[-1][1] <= wanted + 0.1 * (1 - wanted) and len(tried) <= tuning.TRIALS + 1
    assert 1e-6 < tuning.next_strength([(1e-6, 0.99), (2e-6, 0.5)], 0.9, 1e-6) < 2e-6


def test_tuning_goes_by_zeros_or_by_the_val_split(part: Callable[[str], Any], capsys: Any) -> None:
    """For each contender with a strength; what was tried for one share serves the next."""
    tuning, results, experiments = part("tuning"), part("results"), part("experiments")
    made = []

    def tries(run: Any) -> Any:
        made.append(run)
        lam, l1 = run.train.get("options", {}).get("lam"), run.how.get("l1")
        zeros = 0.0 if lam is None else 1 - 1e-7 / (1e-7 + lam)
        val = 0.0 if l1 is None else -abs(math.log(l1 / 1e-4))
        return results.record_of(run, {"zero_share": zeros, "val_accuracy": val}, 1.0)

    found = tuning.tune(experiments.read("xrda-lenet"), tries)
    assert set(found) == {"xrda.train.options.lam", "prox-sgd.train.options.lam", "l1-sgd.how.l1"}
    assert found["l1-sgd.how.l1"] == {90: 1e-4, 95: 1e-4, 98: 1e-4}
    for at, lam in found["xrda.train.options.lam"].items():
        assert at / 100 <= 1 - 1e-7 / (1e-7 + lam) <= at / 100 + 0.1 * (1 - at / 100)
    assert all(run.seed == 0 for run in made) and len(made) <= 12 + 2 * 12
    assert tuning.in_toml({90: 1.5e-6, 95: 2e-6}) == "{ 90 = 1.5e-06, 95 = 2e-06 }"
    assert ": xrda-lenet: xrda at 90, seed 0: " in capsys.readouterr().out


def test_step_times_are_drawn_as_ratios(part: Callable[[str], Any], tmp_path: Path) -> None:
    """The chart and the page of an experiment that measures no accuracy."""
    experiments, results = part("experiments"), part("results")
    experiment = experiments.read("xrda-step")
    names = ("step_ms", "sgd_step_ms", "step_ratio", "step_ratio_low", "step_ratio_high")
    figures = dict(zip(names, (12.0, 11.0, 1.09, 1.07, 1.12), strict=True))
    records = [results.record_of(run, figures, 3.0) for run in experiment.runs()]
    how = {"threads": 1, "device": "CPU", "versions": {"torch": "2"}}
    document = results.document(experiment, records, False, how)
    part("charts").draw(document, tmp_path / "chart.png")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "xrda-step.json").write_text(json.dumps(document))
    page = part("page").write_page([experiment], tmp_path).read_text()
    assert (tmp_path / "chart.png").read_bytes().startswith(PNG)
    assert "| xRDA, channels |  | 12.00 | 11.00 | 1.090 | 1 |" in page and "measured" in page
