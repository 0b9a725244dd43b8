"""Training in several processes, stopped and resumed: real processes, real kills, real files."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import NETS, PYTHON, ROOT, done, killed_at, names, refused, run, torchrun

NETS_HERE = '''
import os

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Convolutions with batch norm, as most users have them; smooth, as rounding turns a ReLU near zero."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.unused, self.fc = nn.Linear(3, 3), nn.Linear(8 * 64, 10)

    def forward(self, x):
        x = F.silu(self.bn1(self.conv1(x)))
        x = F.silu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.flatten(1))


class Breaks(nn.Module):
    """Good for as many training steps as the environment says; then its loss is not a number."""

    def __init__(self):
        super().__init__()
        self.net, self.left = plain(), int(os.environ.get("GOOD_STEPS", "1000000"))

    def forward(self, x):
        self.left -= self.training
        return self.net(x) * (float("nan") if self.left < 0 else 1.0)


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def residual():
    return Residual()


def breaks():
    return Breaks()


def fails_on_the_second():
    if os.environ.get("RANK") == "1":
        raise ValueError("no such layer here")
    return plain()
'''
EPOCHS = 5
STEPS = 5  # of an epoch: 1,079 images in batches of 256
SLOW = ("train", "--arch", f"{NETS}:cnn", "--data", "digits", "--epochs", str(EPOCHS), "--batch-size", "256")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS_HERE)
    return tmp_path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_make_the_weights_of_one(place: Path) -> None:
    options = ("--arch", "nets.py:residual", "--data", "digits", "--optimizer", "sgd", "--epochs", "2", "--json")
    one = done(place, "train", *options, "--out", "one.pt").json
    result = torchrun(place, 2, "-m", "edgeprune", "train", *options, "--out", "two.pt")
    assert result.returncode == 0, result.stderr
    two = json.loads(result.stdout)  # the main process's alone
    assert largest_difference(weights(place / "one.pt"), weights(place / "two.pt")) < 1e-5
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.003)
    assert [epoch["loss"] for epoch in two["epochs"]] == pytest.approx([epoch["loss"] for epoch in one["epochs"]])
    assert result.stderr.count("epoch 2/2") == 1
    assert names(place) - {"__pycache__"} == {"nets.py", "one.pt", "two.pt"}


@pytest.mark.sweep
def test_exact_arithmetic_shows_three_processes_to_be_one(place: Path) -> None:
    """In float64 rounding cannot hide a wrong weight: uneven and empty shares, parts, exported graphs, workers."""
    (place / "fits.py").write_text(FITS)
    result = torchrun(place, 3, "fits.py", "three.pt")
    assert result.returncode == 0, result.stderr
    subprocess.run([PYTHON, "fits.py", "one.pt"], cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    one, three = (torch.load(place / name, weights_only=True) for name in ("one.pt", "three.pt"))
    assert set(one) == set(three) == {*PLAIN, *SPARSE}
    for name, (state, figures) in one.items():
        assert largest_difference(state, three[name][0]) < (1e-5 if name == "float32" else 1e-11), name
        assert figures == pytest.approx(three[name][1], rel=1e-5 if name == "float32" else 1e-9), name


PLAIN = ("batch norm", "parts", "graph", "files", "teacher", "float32", "recipe", "recipe, files")
SPARSE = ("xrda", "rmda", "halo", "n-m", "regrow", "gradual", "gumbel-gates")
FITS = """
import os
import sys
from dataclasses import replace

import torch
from nets import plain, residual

from edgeprune.data import open_data
from edgeprune.data.splits import LazySplit
from edgeprune.graph.capture import capture
from edgeprune.settings import Recipe, TrainSettings
from edgeprune.training import fit

data = open_data("digits")
# 1,079 samples: seven batches of 154, of which one gives up a sample to the last, which so has 2: the third has none.
settings = TrainSettings(epochs=2, batch_size=154, threads=1, best_from=0.99)
lazy = replace(data, train=LazySplit(data.train, torch.arange(301).numpy()))
recipe = Recipe("crop-flip", 0.4, 1.0, 0.1, 1.0, 0.9, 0.5)


def trained(make, data=data, teacher=None, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    module = make().to(dtype)
    records = fit(module, data, data.normalization, replace(settings, **changes), teacher=teacher)
    return module.state_dict(), [records[-1].loss, records[-1].train_value, records[-1].val_value]


def graph():
    return capture(residual().double(), torch.zeros(2, 1, 8, 8, dtype=torch.float64)).module()


torch.manual_seed(1)
found = {
    "batch norm": trained(residual),
    "parts": trained(residual, accumulate=3),
    "graph": trained(graph),
    "files": trained(residual, lazy, batch_size=100, workers=1),
    "float32": trained(plain, dtype=torch.float32),
    "teacher": trained(plain, teacher=residual().double().eval(), optimizer="sgd"),
    "recipe": trained(residual, accumulate=3, recipe=recipe),
    "recipe, files": trained(graph, lazy, batch_size=100, workers=1, recipe=recipe),
    "xrda": trained(plain, optimizer="xrda", options={"lam": 1e-4, "structure": "channel-group"}),
    "rmda": trained(plain, optimizer="rmda", options={"lam": 1e-3}),
    "halo": trained(residual, optimizer="sgd", method="halo", options={"structure": "channel-group"}),
}
for method in ("n-m", "regrow", "gradual", "gumbel-gates"):
    found[method] = trained(plain, optimizer="sgd", method=method)
if os.environ.get("RANK", "0") == "0":
    torch.save(found, sys.argv[1])
"""


SHARED = """
import os
import sys

import torch
from torch import nn

from edgeprune.data import open_data
from edgeprune.settings import TrainSettings
from edgeprune.training import fit

svd = torch.linalg.svd


def other(*given, **named):
    left, lengths, right = svd(*given, **named)
    return left.roll(1, 1), lengths, right.roll(1, 0)  # far more than machines differ


if os.environ.get("RANK") == "1":
    torch.linalg.svd = other
data = open_data("digits")
torch.manual_seed(0)
module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
settings = TrainSettings(epochs=1, threads=1, optimizer="sgd", method="shared-weights", options={"templates": 1})
fit(module, data, data.normalization, settings)
if os.environ.get("RANK", "0") == "0":
    torch.save({"state_dict": module.state_dict()}, sys.argv[1])
"""


def test_processes_share_the_templates_of_the_main_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other machines the same SVD may come out otherwise."""
    (place / "shared.py").write_text(SHARED)
    result = torchrun(place, 2, "shared.py", "two.pt")
    assert result.returncode == 0, result.stderr
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["shared.py", "one.pt"])
    runpy.run_path("shared.py")
    assert largest_difference(weights(place / "one.pt"), weights(place / "two.pt")) < 1e-4


def test_an_error_in_one_process_ends_all(place: Path) -> None:
    options = ("--arch", "nets.py:fails_on_the_second", "--data", "digits", "--out", "m.pt")
    result = torchrun(place, 2, "-m", "edgeprune", "train", *options)
    assert result.returncode != 0
    [line] = [line for line in result.stderr.splitlines() if line.startswith("edgeprune: ")]
    assert line.startswith("edgeprune: process 1: ") and "no such layer here" in line
    assert not (place / "m.pt").exists()
    assert "exitcode  : 1 " in result.stderr  # of the one that waited for it inside of PyTorch
    assert "SIGKILL" not in result.stderr


LATE = """
import os, sys, time
from edgeprune.cli.app import main
code = main(sys.argv[1:])
if os.environ["RANK"] == "0":
    time.sleep(600)  # torchrun ends it with the other
sys.exit(code)
"""


def test_an_error_in_all_processes_is_told_once(place: Path) -> None:
    """However long the process that told of it takes to end."""
    (place / "late.py").write_text(LATE)
    result = torchrun(place, 2, "late.py", "train", "--arch", "nets.py:lost", "--data", "digits", "--out", "m.pt")
    assert result.returncode != 0
    [line] = [line for line in result.stderr.splitlines() if line.startswith("edgeprune: ")]
    assert "nets.py:lost" in line


def test_other_commands_refuse_to_run_side_by_side(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(place, "inspect", str(ROOT / "models" / "digits_mlp.pt"))
    assert "expected one process, got 2; torchrun is for edgeprune train" in line


# -- stopped and resumed -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    done(folder, *SLOW, "--out", "m.pt")
    assert names(folder) == {"m.pt"}
    return (folder / "m.pt").read_bytes()


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: bytes
) -> None:
    out, state = tmp_path / "m.pt", tmp_path / "m.pt.training"
    command = (*SLOW, "--out", "m.pt", "--resume")
    step = "edgeprune.training.loop.fed"
    assert killed_at(tmp_path, step, 2 * STEPS + 3, *command) == -signal.SIGKILL
    before = state.read_bytes()  # in the middle of the third epoch
    assert not out.exists()
    assert killed_at(tmp_path, "os.fsync", 1, *command) == -signal.SIGKILL
    assert state.read_bytes() == before and any(tmp_path.glob(".m.pt.training.*.part"))  # while it is written
    result = done(tmp_path, *command)
    assert f"resumed after epoch 2/{EPOCHS} " in result.err
    assert out.read_bytes() == uninterrupted
    assert names(tmp_path) == {"m.pt"}  # what the kills left has gone


@pytest.mark.sweep
def test_processes_resume_together(place: Path) -> None:
    options = ("--arch", "nets.py:residual", "--data", "digits", "--epochs", "15", "--out")
    command = ("-m", "edgeprune", "train", *options)
    assert torchrun(place, 2, *command, "whole.pt").returncode == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command, "m.pt"],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    state = place / "m.pt.training"
    deadline = time.monotonic() + 300
    while not state.exists():
        assert process.poll() is None and time.monotonic() < deadline
    torchrun_and_its_own = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in torchrun_and_its_own:
        each.kill()
    process.communicate(timeout=300)
    psutil.wait_procs(torchrun_and_its_own, timeout=300)
    assert state.exists() and not (place / "m.pt").exists()
    line = run(place, "train", *options, "m.pt", "--resume").err.splitlines()[-1]
    assert "m.pt.training: processes: expected as many as before, 2, got 1" in line
    result = torchrun(place, 2, *command, "m.pt", "--resume")
    assert result.returncode == 0, result.stderr
    assert "resumed after epoch " in result.stderr
    assert (place / "m.pt").read_bytes() == (place / "whole.pt").read_bytes()


@pytest.fixture
def stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the state of a training that came to a loss that is no number in its third epoch."""
    monkeypatch.setenv("GOOD_STEPS", "20")
    result = run(place, *TRAIN)
    assert (result.code, result.out) == (1, "")
    assert (
        "training diverged: loss nan in epoch 3, step 3; m.pt.training holds the state after epoch 2, "
        "from which --resume goes on with a lower --lr" in result.err
    )
    assert names(place) - {"__pycache__"} == {"nets.py", "m.pt.training"}
    monkeypatch.delenv("GOOD_STEPS")
    return place


TRAIN = ("train", "--arch", "nets.py:breaks", "--data", "digits", "--epochs", "4", "--lr", "0.01", "--out", "m.pt")


def test_what_diverged_goes_on_with_a_lower_learning_rate(stopped: Path) -> None:
    lower = [argument if argument != "0.01" else "0.001" for argument in TRAIN]
    result = done(stopped, *lower, "--resume")
    assert "resumed after epoch 2/4 of m.pt.training" in result.err
    assert "the learning rate is 0.001 from here on" in result.err
    assert names(stopped) - {"__pycache__"} == {"nets.py", "m.pt"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--arch", "nets.py:plain"), "arch: expected 'nets.py:plain', got 'nets.py:breaks'"),
        (("--epochs", "5"), "epochs: expected 5, got 4"),
        (("--seed", "3"), "seed: expected 3, got 0"),
        (("--batch-size", "64"), "batch_size: expected 64, got 128"),
        (("--data", "npz:other.npz"), "data: expected 'npz:other.npz', got 'digits'"),
    ],
)
def test_the_state_of_another_training_is_refused(stopped: Path, change: tuple[str, str], expected: str) -> None:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(50, 1, 8, 8)).astype(np.float32)
    np.savez(stopped / "other.npz", x=x, y=np.arange(50) % 10)
    options = [*TRAIN, *change]  # the last of two counts
    before = (stopped / "m.pt.training").read_bytes()
    result = run(stopped, *options, "--resume")
    assert (result.code, result.out) == (2, "")
    line = result.err.splitlines()[-1]
    assert "m.pt.training: this is the state of another training; " in line and expected in line
    assert (stopped / "m.pt.training").read_bytes() == before


def test_an_unfinished_training_is_not_overwritten(stopped: Path) -> None:
    line = refused(stopped, *TRAIN)
    assert "m.pt.training: expected no earlier training, got the state of an unfinished one; --resume goes on" in line
    assert "assumed" not in done(stopped, *TRAIN, "--force").err
    assert names(stopped) - {"__pycache__"} == {"nets.py", "m.pt"}


def test_resume_with_nothing_there_starts_and_with_all_done_says_so(place: Path) -> None:
    result = done(place, *TRAIN, "--resume")
    assert "assumed: a new training, as there is no m.pt.training to resume" in result.err
    content = (place / "m.pt").read_bytes()
    again = done(place, *TRAIN, "--resume", "--json")
    assert "m.pt: this training is done; nothing is left to resume" in again.err
    assert again.json["epochs"] == [] and again.json["test_accuracy"] > 0.5
    assert (place / "m.pt").read_bytes() == content
    other = run(place, *TRAIN, "--resume", "--seed", "1")
    assert (other.code, other.out) == (2, "")
    assert "m.pt: this is the network of another training; seed: expected 1, got 0; --force" in other.err


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch owned",))


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_damaged_and_hostile_states_are_refused(stopped: Path) -> None:
    state = stopped / "m.pt.training"
    whole = state.read_bytes()
    good = torch.load(state, weights_only=True)
    weights = {name: tensor[:1] for name, tensor in good["weights"].items()}
    hostile = {
        b"": "an empty file",
        b"nothing": "got what has to be unpickled",
        whole[: len(whole) // 2]: "damaged",
        _saved({"format": "edgeprune-training/1"}): "expected the state of a training",
        _saved([1, 2]): "expected the state of a training",
        _saved({**good, "identity": None}): "another training",
        _saved({**good, "weights": weights}): "expected this training's whole state",
        _saved({**good, "optimizer": {"state": {}, "param_groups": []}}): "expected this training's whole state",
        _saved({**good, "records": good["records"] * 2}): "expected this training's whole state",
        _saved({**good, "random": torch.zeros(2, 3)}): "processes: expected as many as before, 2, got 1",
        _saved({**good, "random": torch.zeros(1, 3)}): "expected the kind of device that it trained on before, got cpu",
        _saved({**good, "random": torch.zeros_like(good["random"])}): "expected this training's whole state",
        _saved({**good, "best": Hostile()}): "got what has to be unpickled",
        pickle.dumps(Hostile()): "got what has to be unpickled",
    }
    for content, expected in hostile.items():
        state.write_bytes(content)
        result = run(stopped, *TRAIN, "--resume")
        assert (result.code, result.out) == (2, ""), (expected, result)
        line = result.err.splitlines()[-1]
        assert line.startswith("edgeprune: m.pt.training: ") and expected in line, (expected, line)
        assert state.read_bytes() == content
    assert not (stopped / "owned").exists() and not (stopped / "m.pt").exists()


def test_inference_needs_no_accelerate() -> None:
    code = (
        "import sys; from edgeprune import pipeline; from edgeprune.data import open_data;"
        "from edgeprune.formats.load import load; from edgeprune.training import evaluate;"
        f"data, model = open_data('digits'), load({str(ROOT / 'models' / 'digits_mlp.pt')!r});"
        "assert evaluate(model.program.module(), data.test, data.normalization).value > 0.9;"
        "sys.exit('accelerate' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
