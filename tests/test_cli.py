"""The command line: exit codes, one line an error, JSON alone on stdout, and what reaches the library.

The library itself is replaced by a recorder here; the real commands run in tests/e2e.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app, main
from edgeprune.cli.bars import Bars, Lines
from edgeprune.cli.messages import describe
from edgeprune.errors import BudgetError, InputError, ParityError
from edgeprune.records import InputInfo
from edgeprune.requests import CompressRequest, ExportRequest, TrainRequest, ValidateRequest
from edgeprune.results import (
    EpochRecord,
    ExportedFile,
    ExportRecord,
    GroupRow,
    InspectRecord,
    RunRecord,
    TrainRecord,
    ValidateRecord,
)
from edgeprune.settings import TrainSettings

COMMANDS = ("train", "compress", "export", "validate", "inspect")
TRAIN = ("train", "--arch", "a.py:net", "--data", "digits", "--out", "m.pt")


class Foreign(BaseException):
    """As some native libraries raise them: no Exception."""


class Wordless(Exception):
    """What it says cannot be read."""

    def __str__(self) -> str:
        raise ValueError


class Pipeline(ModuleType):
    """Stands in for the library: keeps the requests, returns records, or raises or does what it is told to."""

    def __init__(self, run: RunRecord) -> None:
        super().__init__("edgeprune.pipeline")
        self.run = run
        self.requests: list[Any] = []
        self.act: Callable[[], Any] = lambda: None
        self.groups: tuple[GroupRow, ...] = (GroupRow("conv1", "channels", ("conv1",), 8, 8, 0.5, exact=True),)
        self.failures: tuple[str, ...] = ()

    def _take(self, request: Any, progress: Any) -> None:
        self.requests.append(request)
        progress.stage("work")
        progress.advance(1, 1, "val 97.2 %")
        self.act()

    def train(self, request: TrainRequest, progress: Any) -> TrainRecord:
        self._take(request, progress)
        epochs = (EpochRecord(1, 0.1, 0.9, 0.9),)
        return TrainRecord(request.out, request.arch, request.data, 10, epochs, 1, 0.9, 0.9, 1.0)

    def compress(self, request: CompressRequest, progress: Any) -> tuple[Path, RunRecord]:
        self._take(request, progress)
        return Path("runs/digits_mlp-1"), self.run

    def export(self, request: ExportRequest, progress: Any) -> ExportRecord:
        self._take(request, progress)
        return ExportRecord("slim.pt2", (ExportedFile("slim.onnx", 10, 1e-6),), ("the newest run",), 360)

    def validate(self, request: ValidateRequest, progress: Any) -> ValidateRecord:
        self._take(request, progress)
        assert self.run.accuracy is not None
        return ValidateRecord(self.run.accuracy, 0.1, 10, 5, self.run.latency, self.failures)

    def profile(self, request: Any, progress: Any) -> Any:
        self._take(request, progress)

    def inspect(self, request: Any, progress: Any) -> InspectRecord:
        self._take(request, progress)
        return InspectRecord(request.model, 1000, 100, self.groups)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., RunRecord]) -> Pipeline:
    stand_in = Pipeline(make_run())
    monkeypatch.setitem(sys.modules, "edgeprune.pipeline", stand_in)
    monkeypatch.setattr(edgeprune, "pipeline", stand_in, raising=False)
    return stand_in


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line not in {"work", "work: 1/1, val 97.2 %"}]
    assert len(lines) == 1, err
    assert lines[0].startswith("edgeprune: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compress"], "missing argument 'MODEL'"),
        (["compres"], "Did you mean 'compress'?"),
        (["compress", "m.pt", "--nonsense"], "no such option: --nonsense"),
        (["compress", "m.pt", "extra"], "extra"),
        (["compress", "m.pt", "--out"], "--out"),
        (["compress", "m.pt", "--keep-macs", "0"], "'--keep-macs': expected a share in (0, 1], got 0.0"),
        (["compress", "m.pt", "--keep-macs", "1.5"], "'--keep-macs': expected a share in (0, 1], got 1.5"),
        (["compress", "m.pt", "--keep-macs", "nan"], "'--keep-macs': expected a share in (0, 1], got nan"),
        (["compress", "m.pt", "--keep-macs", "half"], "'--keep-macs': "),
        (["compress", "m.pt", "--max-drop", "-1"], "'--max-drop': expected a number of at least 0, with % or"),
        (["compress", "m.pt", "--criterion", "l3"], "'--criterion': 'l3' is not one of"),
        (["compress", "m.pt", "--input-features", "some"], "'--input-features': expected auto, off, a count"),
        (["compress", "m.pt", "--input-features", "0"], "'--input-features': "),
        (["compress", "m.pt", "--input-features", "1.5"], "'--input-features': "),
        (["compress", "m.pt", "--input-features", "nan"], "'--input-features': "),
        (["compress", "m.pt", "--input-shape", "3,0,4"], "'--input-shape': expected positive sizes"),
        (["compress", "m.pt", "--input-shape", "3,,4"], "'--input-shape': expected positive sizes"),
        (["compress", "m.pt", "--finetune-epochs", "-1"], "'--finetune-epochs': expected a number of at least 0"),
        (["compress", "m.pt", "--align", "0"], "'--align': expected a number of at least 1, got 0"),
        (["compress", "m.pt", "--seed", "-1"], "'--seed': expected at least 0, got -1"),
        (["compress", "m.pt", "--threads", "0"], "'--threads': expected a number of at least 1"),
        (["train", "--arch", "a", "--data", "digits"], "missing option '--out'"),
        ([*TRAIN, "--epochs", "0"], "'--epochs': expected a number of at least 1, got 0"),
        ([*TRAIN, "--epochs", "many"], "'--epochs': "),
        ([*TRAIN, "--optimizer", "lion"], "'--optimizer': 'lion' is not one of"),
        ([*TRAIN, "--lr", "0"], "'--lr': expected a number above 0, got 0.0"),
        ([*TRAIN, "--lr", "inf"], "'--lr': expected a number above 0, got inf"),
        ([*TRAIN, "--weight-decay", "-1"], "'--weight-decay': expected a number of at least 0"),
        ([*TRAIN, "--batch-size", "0"], "'--batch-size': "),
        (["export"], "export: no target given: expected --onnx"),
        (["export", "m.pt"], "export: no target given: expected --onnx"),
        (["export", "--onnx", "--opset", "3"], "'--opset': expected an opset of at least 18, got 3"),
        (["validate", "a.onnx", "--data", "digits"], "missing argument 'SLIM.onnx'"),
        (["validate", "a.onnx", "b.onnx"], "missing option '--data'"),
        (["validate", "a", "b", "--data", "d", "--runs", "1"], "'--runs': expected at least 10 runs, got 1"),
        (["validate", "a", "b", "--data", "d", "--max-latency-ratio", "0"], "'--max-latency-ratio': "),
        (["inspect"], "missing argument 'MODEL'"),
        (["--nonsense"], "no such option: --nonsense"),
        (["compress", "m.pt", "--input", "x"], "got x (see 'edgeprune compress --help')"),
    ],
)
def test_bad_usage_exits_2_with_one_line(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    assert said in error_line(capsys)
    assert not pipeline.requests


def test_bad_usage_in_a_real_process() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "edgeprune", "compress", "m.pt", "--keep-macs", "2"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines() == [
        "edgeprune: invalid value for '--keep-macs': expected a share in (0, 1], got 2.0 "
        "(see 'edgeprune compress --help')"
    ]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("m.pt: expected a checkpoint,\n got nothing"), 2, "m.pt: expected a checkpoint, got nothing"),
        (BudgetError("keep-macs 0.1 cannot be met: fc is locked"), 1, "keep-macs 0.1 cannot be met: fc is locked"),
        (ParityError("slim.onnx differs by 0.2"), 1, "slim.onnx differs by 0.2"),
        (PermissionError(13, "Permission denied", "/run"), 2, "/run: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ZeroDivisionError("division by zero"),
            3,
            "unexpected ZeroDivisionError: division by zero (--debug prints all",
        ),
        (SystemExit(0), 3, "unexpected SystemExit: 0 (--debug prints"),
        (SystemExit(), 3, "unexpected SystemExit (--debug prints"),
        (GeneratorExit(), 3, "unexpected GeneratorExit (--debug prints"),
        (Foreign("stopped"), 3, "unexpected Foreign: stopped (--debug prints"),
        (Wordless(), 3, "unexpected Wordless: (its message cannot be read) (--debug prints"),
        (InputError("layer \x1b[31mred"), 2, "layer \\x1b[31mred"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def act() -> None:
        raise error

    pipeline.act = act
    for arguments in (["compress", "m.pt"], ["compress", "m.pt", "--json"]):
        assert main(arguments) == code
        assert said in error_line(capsys)


@pytest.mark.parametrize("command", [TRAIN, ("profile", "m.pt"), *((c, "m.pt") for c in ("compress", "inspect"))])
def test_a_fault_of_edgeprune_is_no_missed_budget(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    pipeline.act = lambda: [][1]
    assert main([*command]) == 3
    assert "unexpected IndexError: list index out of range" in error_line(capsys)


def test_debug_shows_the_traceback(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.act = lambda: {}["missing"]
    assert main(["inspect", "m.pt", "--debug"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "Traceback (most recent call last)" in err and "KeyError: 'missing'" in err
    assert f"edgeprune {edgeprune.__version__}, python " in err and ", torch " in err  # all that a report needs


def test_every_error_class_has_a_message() -> None:
    assert describe(InputError("x")) == (2, "x")
    assert describe(BudgetError("x")) == (1, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        ("compress", "m.pt"),
        ("export", "--onnx"),
        ("validate", "a.onnx", "b.onnx", "--data", "digits"),
        ("inspect", "m.pt"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_json_is_alone_on_stdout(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    def noise() -> None:
        sys.stdout.write("python noise\n")
        os.write(1, b"native noise\n")
        warnings.warn("a warning", stacklevel=1)

    pipeline.act = noise
    assert main([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    assert isinstance(json.loads(out), dict)
    assert "python noise" in err and "native noise" in err and "a warning" not in err

    assert main(arguments) == 0
    out, err = capfd.readouterr()
    assert "╭" in out and "noise" not in out
    assert "work: 1/1, val 97.2 %" in err


def test_compress_prints_folder_and_record_as_json(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "m.pt", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == "runs/digits_mlp-1"
    assert document["slim"]["macs"] == pipeline.run.slim.macs


def test_all_options_of_compress_reach_the_library(pipeline: Pipeline) -> None:
    arguments = (
        "compress m.pt --data digits --out run --keep-macs 0.5 --max-drop 2 --input-features 20 --criterion l2 "
        "--finetune-epochs 3 --align 4 --seed 7 --plan plan.json --arch a.py:net --input-shape 3,32,32 --threads 2 "
        "--force --unsafe-pickle --attention head-dim --dynamic-size --normalize weights --allow-chance "
        "--state-key ema --ignore-keys loss.* --trust-recorded --keep-layer stem --leave fc* --layer-ratio a=0.5 "
        "--allocation predictor --prune-schedule iterative --depth"
    ).split()
    assert main(arguments) == 0
    assert pipeline.requests == [
        CompressRequest(
            model="m.pt", data="digits", out="run", keep_macs=0.5, max_drop=2.0, input_features="20", criterion="l2",
            finetune_epochs=3, align=4, seed=7, plan="plan.json", arch="a.py:net", input_shape=(3, 32, 32), threads=2,
            force=True, unsafe_pickle=True, attention="head-dim", dynamic_size=True, normalize="weights",
            allow_chance=True, state_key="ema", ignore_keys="loss.*", trust_recorded=True, leave=("stem", "fc*"),
            layer_ratios=("a=0.5",), allocation="predictor", prune_schedule="iterative",
            depth=True,
            command="edgeprune " + shlex.join(arguments),
        )
    ]  # fmt: skip


def test_inputs_are_told_by_name(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = (InputInfo("image", (3, 8, 8)), InputInfo("ids", (None,), "int64"), InputInfo("age", (), "float64"))
    given = ["--input", "image=3,8,8", "--input", "ids=L:int64", "--input", "age=:float64"]
    assert main(["compress", "m.pt", *given]) == 0 and main(["train", *TRAIN[1:], *given]) == 0
    assert [request.inputs for request in pipeline.requests] == [inputs, inputs]
    for wrong in ("image", "image=3,0", "image=-2", "image=3:text", "3=3", "image=1.5"):
        assert main(["compress", "m.pt", "--input", wrong]) == 2
        assert "expected NAME=SHAPE[:TYPE]" in capsys.readouterr().err
    assert main(["compress", "m.pt", *given, *given[:2]]) == 2
    assert "expected each input once, got image twice" in capsys.readouterr().err


def test_the_command_can_be_pasted_again(pipeline: Pipeline) -> None:
    assert main(["compress", "my model.pt", "--data", "csv:a b.csv?target=y&sep=;"]) == 0
    assert pipeline.requests[0].command == "edgeprune compress 'my model.pt' --data 'csv:a b.csv?target=y&sep=;'"


def test_bare_commands_leave_the_assumptions_to_the_library(pipeline: Pipeline) -> None:
    assert main(["compress", "m.pt"]) == 0
    assert main(["export", "--onnx"]) == 0
    compressed = CompressRequest("m.pt", command="edgeprune compress m.pt")
    assert pipeline.requests == [compressed, ExportRequest(shared=True)]


def test_options_of_the_other_commands_reach_the_library(pipeline: Pipeline) -> None:
    settings = "--epochs 3 --optimizer sgd --lr 0.1 --weight-decay 0 --batch-size 32 --seed 5 --threads 1 --force"
    assert main([*TRAIN, *settings.split()]) == 0
    export = (
        "export slim.pt2 --onnx --out o --data digits --opset 20 --no-simplify --force --dynamic-size --trust-recorded"
    )
    assert main(export.split()) == 0
    validate = "validate a.onnx b.onnx --data digits --max-drop 1 --max-latency-ratio 0.6 --threads 2 --runs 50"
    assert main([*validate.split(), "--batch-size", "8"]) == 0
    assert pipeline.requests == [
        TrainRequest("a.py:net", "digits", "m.pt", TrainSettings(3, "sgd", 0.1, 0.0, 32, 5, 1), True),
        ExportRequest(
            "slim.pt2",
            "o",
            "digits",
            opset=20,
            simplify=False,
            force=True,
            dynamic_size=True,
            trust_recorded=True,
            shared=True,
        ),  # fmt: skip
        ValidateRequest("a.onnx", "b.onnx", "digits", 1.0, 0.6, 2, 50, 8),
    ]


def test_a_missed_budget_shows_the_figures_and_exits_1(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.failures = ("dropped 2.0 points, at most 1.0 was asked",)
    assert main(["validate", "a.onnx", "b.onnx", "--data", "digits", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["failures"] == list(pipeline.failures)
    assert err.splitlines()[-1] == "edgeprune: budget missed: dropped 2.0 points, at most 1.0 was asked"


def test_inspect_exits_1_where_nothing_can_be_pruned(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.groups = (GroupRow("fc", "locked", ("fc",), 10, 10, 1.0, exact=True, reason="graph output"),)
    assert main(["inspect", "m.pt"]) == 1
    out, err = capsys.readouterr()
    assert "locked" in out
    assert err.splitlines()[-1] == "edgeprune: m.pt: nothing can be pruned: fc: graph output"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"edgeprune {command} " in result.stdout.split("Options")[0]
    assert "--json" in result.stdout and "--debug" in result.stdout


def test_help_and_version() -> None:
    runner = CliRunner()
    for arguments in ([], ["--help"], ["-h"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0
        assert all(command in result.stdout for command in COMMANDS)
    assert runner.invoke(app, ["--version"]).stdout == f"edgeprune {edgeprune.__version__}\n"


PROCESS = """
import sys, types
pipeline = types.ModuleType("edgeprune.pipeline")
def inspect(request, progress):
    {body}
pipeline.inspect = inspect
sys.modules["edgeprune.pipeline"] = pipeline
from edgeprune.cli.app import main
sys.exit(main(["inspect", "m.pt", "--json"]))
"""


def test_ctrl_c_is_one_line_and_exit_130() -> None:
    body = 'import time; print("started", flush=True); time.sleep(60)'
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["edgeprune: interrupted; nothing half-written is left"]


def test_a_closed_pipe_is_not_an_error_message() -> None:
    body = (
        "from edgeprune.results import GroupRow, InspectRecord; "
        'return InspectRecord("m", 1, 1, (GroupRow("g" * 100, "channels", (), 1, 1, 1.0, True),) * 5000)'
    )
    script = f"import os, sys; os.close(0)\n{textwrap.dedent(PROCESS.format(body=body))}"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=300) == 1


def test_plain_progress_says_little() -> None:
    now = 0.0
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: now)
    lines.stage("train")
    for epoch in range(1, 31):
        now += 1.0
        lines.advance(epoch, 30, f"loss {1 / epoch:.2f}")
    lines.say("assumed: digits")
    assert stream.getvalue().splitlines() == [
        "train",
        "train: 10/30, loss 0.10, about 20 s left",
        "train: 20/30, loss 0.05, about 10 s left",
        "train: 30/30, loss 0.03",
        "assumed: digits",
    ]


def test_bars_show_the_note_and_leave_a_line_for_each_stage() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=100)
    with RichProgress(console=console, transient=True) as live:
        bars = Bars(live)
        bars.advance(1, 2)
        bars.stage("finetune 1")
        bars.advance(3, 10, "loss 0.31, val 97.2 %")
        assert live.tasks[-1].fields["note"] == "loss 0.31, val 97.2 %"
        assert (live.tasks[-1].completed, live.tasks[-1].total) == (3, 10)
        bars.say("assumed [digits]")
        bars.finish()
    text = stream.getvalue()
    assert "✓ finetune 1  loss 0.31, val 97.2 %" in text
    assert "assumed [digits]" in text


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ('exec "$@" >&-', "edgeprune: stdout: expected a place to print to, got a closed one"),
        ('mkdir gone && cd gone && rmdir ../gone && exec "$@"', "edgeprune: the working folder: expected one that is"),
    ],
)
def test_surroundings_that_no_command_can_work_in(tmp_path: Path, shell: str, line: str) -> None:
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", "edgeprune", "methods"]
    environment = {**os.environ, "PYTHONPATH": str(Path(edgeprune.__file__).parents[1])}
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert process.returncode == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1


def test_without_stdin_and_stderr_the_table_is_printed_all_the_same(tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" <&- 2>&-', "bash", sys.executable, "-m", "edgeprune", "methods"]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(edgeprune.__file__).parents[1])},
    )
    assert process.returncode == 0
    assert "xrda" in process.stdout
