"""`--log FILE`: one JSON object a line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli.board import drawn
from edgeprune.cli.logfile import Logged, logged
from edgeprune.errors import BudgetError, InputError
from edgeprune.progress import Silent


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert all(line.pop("time").endswith("+00:00") for line in found)
    return found


class Heard(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, message: str) -> None:
        self.heard.append(message)


def test_stages_and_what_is_said_are_written_with_times_and_parts_but_once_a_second() -> None:
    now, file, heard = [100.0], io.StringIO(), Heard()
    file.name = "log.jsonl"  # type: ignore[attr-defined]
    log = Logged(heard, file, lambda: now[0])
    log.say("assumed: \x1b[1m--seed 0\n")
    log.stage("step 1: finetune")
    for done in range(1, 41):
        now[0] += 0.25
        log.advance(done, 40, f"loss {done}")
    assert heard.heard == ["assumed: \x1b[1m--seed 0\n"]
    assert "\x1b" not in file.getvalue()
    said, stage, *parts = lines(file.getvalue())
    assert said == {"seconds": 0.0, "event": "said", "message": "assumed: \x1b[1m--seed 0\n"}
    assert stage == {"seconds": 0.0, "event": "stage", "title": "step 1: finetune"}
    assert [part["done"] for part in parts] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 40]
    assert parts[2] == {
        "seconds": 2.25, "event": "progress", "title": "step 1: finetune", "done": 9, "total": 40, "note": "loss 9",
        "left_s": 7.8,
    }  # fmt: skip
    assert parts[-1]["left_s"] == 0.0


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, {"exit": 0}),
        (BudgetError("too slow"), {"exit": 1, "error": "too slow"}),
        (InputError("no such file"), {"exit": 2, "error": "no such file"}),
        (KeyboardInterrupt(), {"exit": 130, "error": "interrupted; nothing half-written is left"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_end_is_written_and_earlier_lines_stay(
    tmp_path: Path, error: BaseException | None, end: dict[str, Any]
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "end", "time": "+00:00"}\n')
    try:
        with logged(Silent(), str(path), "edgeprune compress") as progress:
            progress.say("a")
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    before, said, last = lines(path.read_text())
    assert before == {"event": "end"} and said["message"] == "a"
    assert {name: value for name, value in last.items() if name != "seconds"} == {"event": "end", **end}


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a place that can be written to, got a folder where a file"):
        with logged(Silent(), str(tmp_path), "edgeprune compress"):
            raise AssertionError


def test_without_a_file_the_progress_is_the_same() -> None:
    silent = Silent()
    with logged(silent, None, "edgeprune compress") as progress:
        assert progress is silent


def test_figures_are_written_and_what_is_no_number_is_null() -> None:
    file = io.StringIO()
    file.name = "log.jsonl"  # type: ignore[attr-defined]
    Logged(Silent(), file, lambda: 1.0).measured({"val/loss": 0.25, "val/mAP": float("nan")})
    assert lines(file.getvalue()) == [{"seconds": 0.0, "event": "figures", "val/loss": 0.25, "val/mAP": None}]


def test_tensorboard_gets_each_figure_as_a_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with drawn(Silent(), str(tmp_path / "board")) as progress:
        progress.measured({"val/accuracy": 0.5, "val/loss": 2.0})
        progress.measured({"val/accuracy": 0.75})
    read = EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("val/accuracy")] == [(1, 0.5), (2, 0.75)]
    assert [event.value for event in read.Scalars("val/loss")] == [2.0]


def test_a_missing_tensorboard_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'edgeprune\[tensorboard\]'"):
        with drawn(Silent(), "board"):
            raise AssertionError
