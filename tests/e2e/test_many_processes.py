"""Compress in several processes that torchrun starts: real processes, over gloo, as on one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import done, names, refused, run, snapshot, torchrun

from edgeprune.formats.load import load

NETS = '''
import os

import torch
from torch import nn
from torch.nn import functional as F

from edgeprune.data import open_data


class Residual(nn.Module):
    """With what sees the whole batch: batch norm, and dropout. Smooth, as rounding turns a ReLU near zero."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.hidden, self.drop, self.fc = nn.Linear(8 * 64, 32), nn.Dropout(0.2), nn.Linear(32, 10)

    def forward(self, x):
        x = F.silu(self.bn1(self.conv1(x)))
        x = F.silu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.drop(F.silu(self.hidden(x.flatten(1)))))


def residual():
    return Residual()


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


def of_its_own():
    """Digits, of which the second process has one pixel otherwise."""
    digits = open_data("digits")
    (x, y), *others = ((split.take(torch.arange(len(split)))) for split in (digits.train, digits.val, digits.test))
    x[0, 0, 0, 0] += float(os.environ.get("RANK", "0"))
    return tuple((x.numpy(), y.numpy()) for x, y in ((x, y), *others))
'''
DIES = """
import importlib, os, signal, sys

dying, call, number, *arguments = sys.argv[1:]
place, name = call.rsplit(".", 1)
owner, left = importlib.import_module(place), int(number)
call = getattr(owner, name)


def counted(*given, **named):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] == dying:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*given, **named)


setattr(owner, name, counted)
from edgeprune.cli.app import main

sys.exit(main(arguments))
"""
COMPRESS = ("-m", "edgeprune", "compress")
ASKED = ("dense.pt", "--data", "digits", "--keep-macs", "0.5", "--threads", "1")
ONE_CUT = ("--criterion", "taylor", "--prune-schedule", "one-shot", "--finetune-epochs", "2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A network that was trained by AdamW, by which it is finetuned, too."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "nets.py").write_text(NETS)
    done(folder, "train", "--arch", "nets.py:residual", "--data", "digits", "--optimizer", "adamw", "--epochs", "2",
         "--threads", "1", "--out", "dense.pt")  # fmt: skip
    return (folder / "dense.pt").read_bytes()


@pytest.fixture
def place(tmp_path: Path, trained: bytes) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "dense.pt").write_bytes(trained)
    return tmp_path


def largest_difference(first: Path, second: Path) -> float:
    one, two = (load(str(path)).program.state_dict for path in (first, second))
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)


def alike(place: Path, one: dict[str, Any], two: dict[str, Any]) -> None:
    """The same plan, to the byte, and otherwise what rounding leaves."""
    folders = [path.parent.relative_to(place / "one") for path in (place / "one").rglob("slim.pt2")]
    assert folders
    for folder in folders:
        first, second = (place / name / folder for name in ("one", "two"))
        assert (first / "plan.json").read_bytes() == (second / "plan.json").read_bytes()
        assert largest_difference(first / "slim.pt2", second / "slim.pt2") < 1e-5
    found, value = ("accuracy", "val_accuracy") if "accuracy" in one else ("comparison", "val_agreement")
    assert two[found]["slim"] == pytest.approx(one[found]["slim"], abs=0.003)
    assert two[found]["n_samples"] == one[found]["n_samples"]
    for first, second in zip(one["steps"], two["steps"], strict=True):
        assert second["macs_ratio"] == first["macs_ratio"]
        assert second[value] == pytest.approx(first[value], abs=0.003)


def test_two_processes_prune_as_one(place: Path) -> None:
    """By AdamW, with dropout, in several cuts; the budget is one that the main process alone measures."""
    options = (*ASKED, "--finetune-epochs", "2", "--distill", "features", "--max-size", "1MB", "--json")
    one = done(place, "compress", *options, "--out", "one").json
    # Without "--" torchrun takes --log for one of its own.
    result = torchrun(place, 2, "-m", "edgeprune", "--", *COMPRESS[2:], *options, "--out", "two", "--log", "two.jsonl")
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)  # the main process's alone
    assert (place / "two.jsonl").read_text().count('"end"') == 1
    alike(place, one, two)
    assert result.stderr.count("step 1: score and cut") == 1 and len(two["steps"]) > 1
    assert names(place) - {"__pycache__"} == {"nets.py", "dies.py", "dense.pt", "one", "two", "two.jsonl"}
    assert names(place / "two") == names(place / "one")


def test_processes_with_different_data_are_refused(place: Path) -> None:
    options = ("dense.pt", "--data", "nets.py:of_its_own", "--keep-macs", "0.5", "--out", "run")
    result = torchrun(place, 2, *COMPRESS, *options)
    assert result.returncode != 0 and result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("edgeprune: ")]
    assert line.startswith("edgeprune: process 1: expected the network, data, versions and options of process 0; ")
    assert "samples: expected '" in line
    assert names(place) - {"__pycache__"} == {"nets.py", "dies.py", "dense.pt"}


def test_functions_of_the_users_are_for_one_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.training.team.n_processes", lambda: 1)  # nobody is there to be met
    monkeypatch.setattr("edgeprune.commands.scripted.n_processes", lambda: 2)
    for option in ("--finetune", "--evaluate"):
        line = refused(place, "compress", *ASKED, option, "nets.py:residual", "--out", "run")
        assert (
            f"{option} nets.py:residual: expected one process for a function of yours, got 2; without torchrun" in line
        )


@pytest.mark.sweep
@pytest.mark.parametrize("dying", ["0", "1"])
def test_a_process_that_dies_ends_all_and_the_run_goes_on(place: Path, dying: str) -> None:
    asked = (*ASKED, "--finetune-epochs", "3")
    assert torchrun(place, 2, *COMPRESS, *asked, "--out", "whole").returncode == 0
    step = "edgeprune.training.loop.fed"
    result = torchrun(place, 2, "dies.py", dying, step, 24, "compress", *asked, "--out", "run")
    assert result.returncode != 0 and result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("edgeprune: ")]
    assert "2 processes" in line and "ended" in line, line
    assert list((place / "run.compressing").glob("*.training")) and not (place / "run").exists()

    before = snapshot(place / "run.compressing")
    alone = run(place, "compress", *asked, "--out", "run", "--resume")
    assert (alone.code, snapshot(place / "run.compressing")) == (2, before)
    assert "run.compressing: this is the state of another run; processes: expected 1, got 2" in alone.err

    result = torchrun(place, 2, *COMPRESS, *asked, "--out", "run", "--resume")
    assert result.returncode == 0, result.stderr
    assert "resumed after epoch " in result.stderr
    for name in ("plan.json", "slim.pt2"):
        assert (place / "run" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert not (place / "run.compressing").exists()

    again = torchrun(place, 2, *COMPRESS, *asked, "--out", "run", "--resume", "--json")
    assert again.returncode == 0 and json.loads(again.stdout)["steps"]
    assert again.stderr.count("this run is done; nothing is left to resume") == 1


TRAINED = {
    "one-cut": ONE_CUT,
    "sgd": (*ONE_CUT, "--recipe", "sgd.toml"),
    "sgd-several-cuts": ("--finetune-epochs", "2", "--recipe", "sgd.toml"),
    "match": ("--task", "match", "--finetune-epochs", "2"),
}


@pytest.mark.sweep
@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_two_processes_train_as_one(place: Path, options: tuple[str, ...]) -> None:
    (place / "sgd.toml").write_text('optimizer = "sgd"\n')
    one = done(place, "compress", *ASKED, *options, "--json", "--out", "one").json
    result = torchrun(place, 2, *COMPRESS, *ASKED, *options, "--json", "--out", "two")
    assert result.returncode == 0, result.stderr
    alike(place, one, json.loads(result.stdout))


@pytest.mark.sweep
def test_two_processes_split_layers_as_one(place: Path) -> None:
    done(place, "train", "--arch", "nets.py:linear", "--data", "digits", "--epochs", "4", "--threads", "1",
         "--out", "linear.pt")  # fmt: skip
    asked = ("linear.pt", "--data", "digits", "--keep-macs", "0.4", "--prune-schedule", "one-shot", "--threads", "1",
             "--input-features", "off", "--lowrank", "--finetune-epochs", "2", "--json")  # fmt: skip
    one = done(place, "compress", *asked, "--out", "one").json
    result = torchrun(place, 2, *COMPRESS, *asked, "--out", "two")
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)
    assert one["splits"] and two["splits"] == one["splits"]
    alike(place, one, two)


@pytest.mark.sweep
def test_two_processes_train_widths_as_one(place: Path) -> None:
    asked = (
        "dense.pt",
        "--data",
        "digits",
        "--widths",
        "0.5,0.25",
        "--finetune-epochs",
        "2",
        "--threads",
        "1",
        "--json",
    )
    one = done(place, "compress", *asked, "--out", "one").json
    result = torchrun(place, 2, *COMPRESS, *asked, "--out", "two")
    assert result.returncode == 0, result.stderr
    alike(place, one, json.loads(result.stdout))
    assert names(place / "two" / "widths") == names(place / "one" / "widths")


UNTRAINED = {
    "statistics": ("--no-reconstruct", "--criterion", "activation"),
    "reconstruction": ("--criterion", "outgoing"),
    "sensitivity": ("--allocation", "sensitivity", "--no-reconstruct"),
    "predictor": ("--allocation", "predictor", "--no-reconstruct"),
    "depth": ("--depth",),
}


@pytest.mark.sweep
@pytest.mark.parametrize("options", UNTRAINED.values(), ids=UNTRAINED)
def test_three_processes_prune_as_one_without_training(place: Path, options: tuple[str, ...]) -> None:
    asked = (*ASKED, *options, "--finetune-epochs", "0", "--json")
    one = done(place, "compress", *asked, "--out", "one").json
    result = torchrun(place, 3, *COMPRESS, *asked, "--out", "two")
    assert result.returncode == 0, result.stderr
    alike(place, one, json.loads(result.stdout))


@pytest.mark.sweep
def test_a_front_is_measured_by_the_main_process(place: Path) -> None:
    asked = ("dense.pt", "--data", "digits", "--pareto", "2", "--finetune-epochs", "1", "--threads", "1", "--json")
    result = torchrun(place, 2, *COMPRESS, *asked, "--out", "two")
    assert result.returncode == 0, result.stderr
    assert [point["folder"] for point in json.loads(result.stdout)["front"]] == ["pareto/1", "pareto/2"]
    assert (place / "two" / "pareto" / "2" / "slim.pt2").exists()
