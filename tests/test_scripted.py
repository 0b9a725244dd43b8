"""`compress --finetune` and `--evaluate`: a script's own training and figure, and what it may do wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.preparing import Job, prepare
from edgeprune.commands.scripted import Scripted
from edgeprune.errors import InputError
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.requests import CompressRequest
from edgeprune.runrecord import run_from_json, to_json
from edgeprune.search.candidate import Found
from edgeprune.search.ownscript import EVALUATE_TOLD, FINETUNE_TOLD, NamedFigure, OwnFigure, OwnFinetuning, OwnFunction
from edgeprune.search.trainer import Round
from edgeprune.userfile import load_function

MLP = str(Path(__file__).parents[1] / "models" / "digits_mlp.pt")
QUICK = ("--keep-macs", "0.5", "--align", "1", "--threads", "1")
SCRIPT = """
import torch
from torch.nn.functional import cross_entropy
from edgeprune.data import batches, normalize, open_data

DATA = open_data("digits")
TOLD = []

def rows(split):
    x, y = next(batches(split, 2000))
    return normalize(x, DATA.normalization), y

def train(module, share, macs, seed, device, epochs=2, *, step=0):
    TOLD.append((step, round(share, 3), macs, epochs, seed, str(device), module.training))
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    x, y = rows(DATA.train)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            cross_entropy(module(x[index]), y[index]).backward()
            optimizer.step()
    return [0.1, 0.2]  # a history, say

def figures(module):
    x, y = rows(DATA.val)
    assert not module.training
    outputs = module(x)
    right = (outputs.argmax(1) == y).float().mean()
    return {"cross entropy": cross_entropy(outputs, y).item(), "right <b>": right}

def right(module):
    return figures(module)["right <b>"].item()
"""
BAD = """
import asyncio, copy, math, sys
import torch

def raises(module): raise KeyError("lost")
def exits(module): sys.exit(0)
def nan(module): torch.nn.init.constant_(next(module.parameters()), math.nan)
def infinite(module): module.get_buffer("1.running_mean").fill_(math.inf)
def copies(module): return copy.deepcopy(module)
def replaces(module): return torch.nn.Linear(4, 2)
def reshapes(module): module.get_submodule("0").weight = torch.nn.Parameter(torch.zeros(3, 4))
def halves(module): module.half()
def deletes(module): del module.get_submodule("0").weight
async def later(module): pass
def lazy(module): yield 1
def nothing(): pass
def only_named(*, module): pass
def wants(module, loader, step): pass
def idle(module): pass
def none(module): return None
def text(module): return "0.9"
def truth(module): return True
def not_finite(module): return torch.tensor(math.nan)
def many(module): return {"a": 1.0, "b": 2.0}
def empty(module): return {}
def unnamed(module): return {3: 1.0}
def two_lines(module): return {"a" + chr(10) + "b": 1.0}
def no_number(module): return {"a": [1.0]}
class Trap(dict):
    def __iter__(self): sys.exit(0)
def trap(module): return Trap(a=1.0)
CALLS = []
def changes(module):
    CALLS.append(1)
    return {"a": 1.0} if len(CALLS) % 2 else {"b": 1.0}
def turns(module):
    CALLS.append(1)
    return {"a": 1.0} if len(CALLS) % 2 else 1.0
value = 3
"""


OPEN_CRITERION = "--criterion taylor or l2 (in each cut of channels the one that loses less untrained)"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured, but not for long: nothing here goes by it."""
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a script that does it right and one that does not."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compress(*arguments: str, model: str = MLP, expect: int = 0) -> str:
    """What `compress` writes to the terminal, or its line of refusal."""
    found = CliRunner().invoke(app, ["compress", model, "--out", "run", "--force", *arguments])
    assert found.exit_code == expect, found.output
    return " ".join(found.output.split())


def record_of(place: Path) -> dict[str, Any]:
    text = (place / "run" / "run.json").read_text()
    assert to_json(run_from_json(text)) == text, "what is written can be read, to the byte"
    found: dict[str, Any] = json.loads(text)
    return found


def searched(**asked: Any) -> tuple[Job, Found]:
    request = CompressRequest(MLP, **{"keep_macs": 0.5, "align": 1, "threads": 1, "out": "none", **asked})
    job = prepare(request, Silent())
    return job, job.strategy.search(job.step, job.budgets)


def told_to(job: Job) -> list[Any]:
    """What the script's `train` was called with."""
    calls: list[Any] = job.step.trainer.inner.finetuning.function._function.__globals__["TOLD"]  # type: ignore[union-attr]
    return calls


def test_a_script_trains_and_judges_without_data(place: Path) -> None:
    said = compress("--finetune", "script.py:train", "--evaluate", "script.py:right", *QUICK, "--max-drop", "3%")
    record = record_of(place)
    assert record["metric"] == {"name": "right", "unit": "", "scale": 1.0, "higher_is_better": True}
    assert (record["asked"]["finetune"], record["asked"]["evaluate"]) == ("script.py:train", "script.py:right")
    assert record["data"] is None and record["comparison"] is None
    dense, slim = record["dense"], record["slim"]
    assert dense["val_right"] > 0.95 and slim["val_right"] >= 0.97 * dense["val_right"] and slim["test_right"] is None
    assert slim["macs"] <= 0.5 * dense["macs"]
    assert "validation" not in said and "│ right │" in said and "assumed --metric right:higher" in said
    assert "assumed --criterion l2" in said and "assumed --finetune-epochs 2" in said
    assert "the functions normalise what they hand the network" in said
    page = (place / "run" / "report.html").read_text()
    assert "script.py:train" in page and "script.py:right" in page
    assert "Right over steps" in page and "validation" not in page.lower() and "accuracy" not in page.lower()
    exported = CliRunner().invoke(app, ["export", "--onnx", "run/slim.pt2"])
    assert exported.exit_code == 0 and (place / "run" / "slim.onnx").exists(), exported.output


def test_it_is_told_what_it_asks_for_and_every_run_is_the_same(place: Path) -> None:
    before = torch.get_rng_state()
    asked = {"finetune": "script.py:train", "evaluate": "script.py:right", "finetune_epochs": 3, "seed": 5}
    (job, found), (_, again) = searched(**asked), searched(**asked)
    told = told_to(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert [(step, epochs, seed, where, training) for step, _, _, epochs, seed, where, training in told] == [
        (1, 3, 5, device, True),
        (2, 3, 5, device, True),
    ]
    assert [share for _, share, *_ in told] == [round(step.macs_ratio, 3) for step in found.steps]
    assert told[-1][2] == found.networks[-1].macs
    for name, tensor in found.networks[-1].program.state_dict.items():
        assert torch.equal(tensor, again.networks[-1].program.state_dict[name])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_training_alone_takes_the_place_of_finetuning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise AssertionError("the data's own training")

    monkeypatch.setattr("edgeprune.search.datatrainer.fit", fit)
    job, found = searched(finetune="script.py:train", data="digits", input_features="40")
    assert OPEN_CRITERION in job.assumed and len(told_to(job)) > 1
    assert job.step.metric.name == "accuracy" and found.steps[-1].val_value is not None
    assert found.steps[-1].val_value > 0.9 and found.networks[-1].n_features == 40 and not found.selection


def test_without_a_figure_and_data_nothing_is_judged(place: Path) -> None:
    plain = str(place / "plain.pt2")
    torch.export.save(capture(network().eval(), torch.randn(2, 4)), plain)
    said = compress("--finetune", "bad.py:idle", "--align", "1", model=plain)
    assert "assumed --keep-macs 0.5 (there are no data to measure a drop on)" in said
    assert "bad.py:idle left every weight as it was; it is to train the module that it is given" in said
    assert record_of(place)["slim"]["val_accuracy"] is None


def test_a_figure_alone_is_what_the_budget_counts(place: Path) -> None:
    """Finetuned on the data, judged by the script: less is better of what is called an error, or said to be."""
    asked = {"evaluate": "script.py:figures", "data": "digits", "finetune_epochs": 1, "input_features": "off"}
    asked |= {"keep_macs": None, "max_drop": 0.3, "max_finetunings": 4}
    job, found = searched(**asked, metric="cross entropy:lower")
    metric = job.step.metric
    assert (metric.name, metric.higher_is_better) == ("cross entropy", False)
    dense, slim = found.dense.val_value, found.networks[-1].val_value
    assert dense is not None and slim is not None and dense < slim <= dense + 0.3
    for step in found.steps:
        assert step.val_value is not None and step.accepted == (step.val_value <= dense + 0.3)


def test_a_figure_alone_without_data_only_chooses(place: Path) -> None:
    plain = str(place / "plain.pt2")
    torch.export.save(capture(network().eval(), torch.randn(2, 4)), plain)
    (place / "figure.py").write_text("def size(module): return sum(w.numel() for w in module.parameters())\n")
    said = compress("--evaluate", "figure.py:size", "--max-drop", "60%", "--align", "1", model=plain)
    assert "assumed --finetune-epochs 0 (there are no data to finetune on)" in said
    slim = record_of(place)["slim"]
    assert 0.4 * 74 <= slim["val_size"] == slim["params"] < 74


@pytest.mark.parametrize(
    ("name", "higher"),
    [
        ("loss", False),
        ("val_loss", False),
        ("MAE", False),
        ("word error rate", False),
        ("mAP", True),
        ("glossary", True),
    ],
)
def test_less_is_better_of_what_is_called_a_loss(name: str, higher: bool) -> None:
    function = OwnFunction(lambda module: {name: 2}, "s.py:f", EVALUATE_TOLD)
    figure, value = OwnFigure.of(function, 0, NamedFigure(), network())
    assert (figure.metric.name, figure.metric.higher_is_better, value) == (name, higher, 2.0)
    assert OwnFigure.of(function, 0, NamedFigure.parse(f"{name}:higher"), network())[0].metric.higher_is_better


def test_a_function_that_counts_no_epochs_is_called_once_more_in_a_longer_round() -> None:
    seeds: list[int] = []
    finetuning = OwnFinetuning(OwnFunction(lambda module, seed: seeds.append(seed), "s.py:f", FINETUNE_TOLD), None, 7)
    for number in range(3):
        assert not finetuning(network(), Round(number))
    assert seeds == [7, 11, 12, 15, 16, 17, 18]


def test_what_it_does_to_the_module_stays_with_the_copy_that_it_gets() -> None:
    """Weights are taken; a hook, frozen weights, another mode or place, and a wrapper around it, are not."""

    def train(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.requires_grad_(False).add_(1)
        module.register_forward_hook(lambda *_: torch.zeros(1))
        return torch.nn.DataParallel(module.eval())

    module, plain = network(), network()
    assert OwnFinetuning(OwnFunction(train, "s.py:f", FINETUNE_TOLD), None, 0)(module, Round())
    for own, before in zip(module.parameters(), plain.parameters(), strict=True):
        assert own.requires_grad and torch.equal(own, before + 1)
    assert module.training and module(torch.ones(3, 4)).shape == (3, 2)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def of_file(place: Path, name: str, told: tuple[str, ...]) -> OwnFunction:
    return OwnFunction(load_function(place / "bad.py", name), f"bad.py:{name}", told)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"it raised KeyError: 'lost'"),
        ("exits", r"it raised SystemExit: 0"),
        ("nan", r"expected the module that it was given, trained in place, got a Sequential with NaN in 0\.weight"),
        ("infinite", r"got a Sequential with infinity in 1\.running_mean"),
        ("copies", r"expected the module to be trained in place, got another one, a Sequential"),
        ("replaces", r"got another one, a Linear"),
        ("reshapes", r"got a Sequential with 0\.weight \[3, 4\] instead of \[8, 4\]"),
        ("halves", r"0\.weight of torch\.float16 on cpu instead of torch\.float32"),
        ("deletes", r"got a Sequential with missing 0\.weight"),
        ("later", r"expected a function that runs when it is called, got a coroutine"),
        ("lazy", r"expected a function that runs when it is called, got a generator"),
        ("nothing", r"expected a function of the module, got one that takes none"),
        ("only_named", r"expected a function of the module, got one that takes none"),
        ("wants", r"what it names among step, share, macs, epochs, seed, device, got one that asks for loader"),
    ],
)
def test_a_training_that_goes_wrong_is_told_by_its_line(place: Path, name: str, said: str) -> None:
    module = network()
    with pytest.raises(InputError, match=rf"^bad\.py:{name}: .*{said}") as caught:
        OwnFinetuning(of_file(place, name, FINETUNE_TOLD), None, 0)(module, Round())
    assert f"bad.py:{_line_of(place, name)} in {name})" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), network().parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "it raised KeyError: 'lost'"),
        ("exits", "it raised SystemExit: 0"),
        ("none", "expected a number, or a dict of numbers by name, got NoneType"),
        ("text", "expected a number, or a dict of numbers by name, got str"),
        ("truth", "expected a number, or a dict of numbers by name, got bool"),
        ("not_finite", "expected a finite number, got nan"),
        ("many", "expected one figure, or --metric to name one of several, got a, b"),
        ("empty", "expected one figure, or --metric to name one of several, got none"),
        ("unnamed", "expected a figure with a name, in one line, got 3"),
        ("two_lines", "expected a figure with a name, in one line, got 'a\\nb'"),
        ("no_number", "expected a number, or a dict of numbers by name, got list"),
        ("trap", "reading what it gave raised SystemExit: 0"),
        ("changes", "expected a figure named 'a', got b"),
        ("turns", "expected a figure named 'a', got a bare number"),
        ("wants", "what it names among seed, device, got one that asks for loader, step"),
    ],
)
def test_a_figure_that_is_none_is_told_by_its_line(place: Path, name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        OwnFigure.of(of_file(place, name, EVALUATE_TOLD), 0, NamedFigure(), network())[0].value(network())
    assert said in str(caught.value) and "bad.py:" in str(caught.value) and "\n" not in str(caught.value)
    assert f"in {name})" in str(caught.value) or "in __iter__)" in str(caught.value)


def _line_of(place: Path, name: str) -> int:
    lines = (place / "bad.py").read_text().splitlines()
    return next(n for n, text in enumerate(lines, 1) if text.removeprefix("async ").startswith(f"def {name}("))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--finetune", "bad.py"), "--finetune: expected path/file.py:function, got 'bad.py'"),
        (("--finetune", "gone.py:train"), "gone.py: "),
        (("--finetune", "bad.py:value"), "expected a function 'value', got nothing of that name that can be called"),
        (("--finetune", "bad.py:exits"), "bad.py:exits: it raised SystemExit: 0 (at "),
        (("--evaluate", "bad.py:exits"), "bad.py:exits: it raised SystemExit: 0 (at "),
        (("--evaluate", "bad.py:many", "--metric", "c"), "bad.py:many: expected a figure named 'c', got a, b (at "),
        (("--metric", "mAP"), "--metric mAP: expected --evaluate, whose figure it names, got none"),
        (("--evaluate", "bad.py:many", "--metric", ":lower"), "--metric: expected NAME, NAME:lower or NAME:higher"),
        (("--finetune", "bad.py:idle", "--finetune-epochs", "0"), "--finetune-epochs: expected at least 1 beside"),
        (
            ("--finetune", "bad.py:idle", "--finetune-epochs", "3"),
            "expected an argument epochs for --finetune-epochs 3",
        ),
        (
            ("--finetune", "bad.py:idle", "--evaluate", "bad.py:many", "--metric", "a", "--max-drop", "1"),
            "--max-drop: expected less than a of the dense network, 1, or a share of it such as 1%, got 1",
        ),
        (
            ("--finetune", "bad.py:idle", "--evaluate", "bad.py:many", "--metric", "a", "--max-drop", "1 points"),
            "--max-drop: expected a bare number or %, as a is measured in, got 'points'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(place: Path, arguments: tuple[str, ...], said: str) -> None:
    output = compress(*arguments, *QUICK, "--input-features", "off", expect=2)
    assert said in output.replace("| ", "") and not (place / "run").exists()


def test_what_a_run_names_is_not_run(place: Path) -> None:
    """Neither the network that came of it nor its run.json makes a script run; only the command line does."""
    compress("--finetune", "script.py:train", "--evaluate", "script.py:right", *QUICK)
    (place / "script.py").write_text("open('ran', 'w').close()\n")
    again = ("--align", "1", "--finetune-epochs", "0", "--keep-macs", "0.9", "--trust-recorded", "--data", "digits")
    found = CliRunner().invoke(app, ["compress", "run/slim.pt2", *again, "--out", "again", "--input-features", "off"])
    assert found.exit_code == 0, found.output
    assert not (place / "ran").exists() and (place / "again" / "run.json").exists()


def test_a_file_with_both_is_run_once(place: Path) -> None:
    (place / "both.py").write_text(
        "print(1, file=open('runs', 'a'))\ndef one(module): pass\ndef two(module): return 1\n"
    )
    Scripted.of(CompressRequest(MLP, finetune="both.py:one", evaluate="./both.py:two"))
    assert (place / "runs").read_text() == "1\n"
