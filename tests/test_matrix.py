"""The matrix of networks by runtimes: what of it is done, how it is counted, and how the page shows it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RUNTIMES = ("onnx", "ort", "c", "ncnn")
FILE = {".onnx": {"error": 3e-7, "bytes": 10}}
CELLS: dict[str, Any] = {
    "onnx": {"dense": FILE, "slim": FILE, "dense_ms": 2.0, "slim_ms": 1.0, "ratio": 0.5},
    "ort": {"dense": {**FILE, "left out": ["net.fp16: too far off"]}, "slim": {".ort": {"error": 0.0, "bytes": 9}}},
    "c": {"dense": {"refused": "C has no LSTM (lstm)"}, "slim": {"refused": "C has no LSTM (lstm)"}},
    "ncnn": {"missing": "ncnn is not installed"},
}


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[1] / "scripts"), *sys.path])
    yield importlib.import_module("measure.matrix")


def test_times_are_added_later_to_what_has_files_alone(matrix: Any) -> None:
    answered = {name: matrix.is_done(cell, with_latency=False) for name, cell in CELLS.items()}
    timed = {name: matrix.is_done(cell, with_latency=True) for name, cell in CELLS.items()}
    assert answered == {"onnx": True, "ort": True, "c": True, "ncnn": False}
    assert timed == {"onnx": True, "ort": False, "c": True, "ncnn": False}
    assert matrix.is_done({**CELLS["ort"], "untimed": "not on this machine"}, with_latency=True)
    assert not matrix.is_done(None, with_latency=False)


def test_cells_are_files_or_reasons(matrix: Any, tmp_path: Path) -> None:
    records = [{"name": "lstm", "cells": CELLS}]
    assert matrix.summary(records, RUNTIMES) == {"cells": 6, "files": 4, "geometric_means": {"onnx": 0.5}}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.START}\nold\n{matrix.END}\nafter\n")
    matrix.put(page, {**matrix.summary(records, RUNTIMES), "networks": records}, RUNTIMES)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "4 of 6 cells are files that are equal." in text
    assert "| lstm | 0.50: 3e-07, 3e-07 | 3e-07, 0 | refused, refused | not installed |" in text
    assert "- lstm, c, dense and slim: C has no LSTM (lstm)" in text
    assert "- lstm, ort, dense: net.fp16: too far off" in text


@pytest.mark.parametrize("files", [{}, {"left out": ["net.fp16: too far off"]}])
def test_files_of_which_none_is_compared_are_said_to_be(matrix: Any, files: dict[str, Any]) -> None:
    record = {"name": "net", "cells": {"onnx": {"dense": files, "slim": FILE}}}
    assert matrix.row(record, ("onnx",)) == "| net | not compared, 3e-07 |"
    assert matrix.summary([record], ("onnx",))["files"] == 1


def test_a_page_without_marks_stays(matrix: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")
    with pytest.raises(ValueError, match=r"page\.md: expected the marks"):
        matrix.put(page, {"cells": 0, "files": 0, "geometric_means": {}, "networks": []}, RUNTIMES)
    assert page.read_text() == "mine\n"
