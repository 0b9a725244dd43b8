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

from edgeprune.data import open_data


class Residual(nn.Module):
    """Without dropout, which each process would draw for itself."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 64, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.flatten(1))


def residual():
    return Residual()


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
    """A network that is finetuned by SGD: Adam makes full steps of gradients that are nothing but rounding."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "nets.py").write_text(NETS)
    done(folder, "train", "--arch", "nets.py:residual", "--data", "digits", "--optimizer", "sgd", "--epochs", "2",
         "--threads", "1", "--out", "dense.pt")  # fmt: skip
    return (folder / "dense.pt").read_bytes()


@pytest.fixture
def place(tmp_path: Path, trained: bytes) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "dense.pt").write_bytes(trained)
    return tmp_path


def largest_difference(first: Path, second: Path) -> float:
    one, two = (load(str(folder / "slim.pt2")).program.state_dict for folder in (first, second))
    assert one.keys() == two.keys()
    return max((one[name].double() - two[name].double()).abs().max().item() for name in one)


def alike(place: Path, one: dict[str, Any], two: dict[str, Any]) -> None:
    """The same plan, to the byte, and otherwise what rounding leaves."""
    assert (place / "one" / "plan.json").read_bytes() == (place / "two" / "plan.json").read_bytes()
    assert largest_difference(place / "one", place / "two") < 1e-5
    assert two["accuracy"]["slim"] == pytest.approx(one["accuracy"]["slim"], abs=0.003)
    assert two["accuracy"]["n_samples"] == one["accuracy"]["n_samples"]
    for first, second in zip(one["steps"], two["steps"], strict=True):
        assert second["macs_ratio"] == first["macs_ratio"]
        assert second["val_accuracy"] == pytest.approx(first["val_accuracy"], abs=0.003)


def test_two_processes_prune_as_one(place: Path) -> None:
    options = (*ASKED, *ONE_CUT, "--max-size", "1MB", "--json")  # a budget that the main process alone measures
    one = done(place, "compress", *options, "--out", "one").json
    result = torchrun(place, 2, *COMPRESS, *options, "--out", "two")
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)  # the main process's alone
    alike(place, one, two)
    assert result.stderr.count("step 1: score and cut") == 1
    assert names(place) - {"__pycache__"} == {"nets.py", "dies.py", "dense.pt", "one", "two"}
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
    assert (place / "run.compressing" / "000000.training").exists() and not (place / "run").exists()

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
