"""A gate that cannot keep what it was asked for: refused before the widths are trained, and after it left out alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgeprune import runrecord
from edgeprune.commands.compress import compress
from edgeprune.errors import BudgetError, InputError, ParityError
from edgeprune.report import terminal
from edgeprune.report.html import render
from edgeprune.requests import CompressRequest

MLP = Path(__file__).parent.parent / "models" / "digits_mlp.pt"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _times_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file takes is as its bytes are to the dense one's: the same on any machine."""

    def times(paths: tuple[Path, Path], *_: Any) -> np.ndarray:
        return np.array([[1.0, paths[1].stat().st_size / paths[0].stat().st_size]])

    monkeypatch.setattr("edgeprune.measure.candidates.steady_times", times)
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.05,))


def asked(out: Path, gate: str) -> CompressRequest:
    return CompressRequest(
        str(MLP), "digits", str(out / "run"), widths=(1.0, 0.6), gate=gate, finetune_epochs=0, align=8, threads=1
    )


def raises(error: BaseException) -> Any:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def test_a_share_of_the_time_that_no_width_keeps_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.search.datatrainer.DataTrainer.finetune", raises(AssertionError("trained")))
    with pytest.raises(
        BudgetError, match=r"--gate 0\.3x: expected a mean share of at least 0\.\d+ .* time, .* got 0\.3"
    ):
        compress(asked(tmp_path, "0.3x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gate", "where", "fails", "why"),
    [
        ("0.8x", "gate_ms", lambda *_: 9.0, "expected a mean cost of at least"),  # the machine is slower by now
        ("0.8", "checked_gated", raises(ParityError("gate.onnx: another width")), "gate.onnx: another width"),
    ],
)
def test_what_fails_of_the_gate_at_the_end_costs_no_widths(  # noqa: PLR0913 - fixtures
    gate: str, where: str, fails: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"edgeprune.commands.gatefile.{where}", fails)
    folder, record = compress(asked(tmp_path, gate))
    assert record.shared is not None and record.shared.gate is None and why in record.shared.no_gate
    assert {path.name for path in (folder / "widths").glob("*.onnx")} == {"1.onnx", "0.6.onnx"}
    text = (folder / "run.json").read_text()
    assert runrecord.run_from_json(text).shared == record.shared and not (tmp_path / "run.compressing").exists()
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal.run(record, folder))
    assert f"the gate: {record.shared.no_gate}" in console.export_text() and "Left out: the gate" in render(record)


def test_a_gate_that_loses_more_than_is_allowed_is_left_out(tmp_path: Path) -> None:
    """The widest is the dense network, which loses nothing; the narrow one is not trained."""
    wide = asked(tmp_path, "0.7")
    folder, record = compress(replace(wide, max_drop=0.0))
    assert record.shared is not None and record.shared.gate is None and not (folder / "widths" / "gate.onnx").exists()
    assert "points on the validation split at a mean of 0." in record.shared.no_gate
    assert ", --max-drop allows 0" in record.shared.no_gate
    _, record = compress(replace(wide, max_drop=90.0, force=True))
    assert record.shared is not None and record.shared.gate is not None and not record.shared.no_gate


def test_a_full_disk_leaves_what_there_is_and_a_gate_by_time_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = InputError("gate.onnx: cannot be written")
    full.__cause__ = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("edgeprune.commands.gatefile.checked_gated", raises(full))
        with pytest.raises(InputError, match=r"gate\.onnx: cannot be written"):
            compress(asked(tmp_path, "0.8x"))
    assert (tmp_path / "run.compressing").is_dir()
    monkeypatch.setattr("edgeprune.commands.gatefile.learnt_gate", raises(AssertionError("trained again")))
    _, record = compress(replace(asked(tmp_path, "0.8x"), resume=True))
    assert record.shared is not None and record.shared.gate is not None and record.shared.gate.of == "latency"
    assert record.shared.gate.cost <= 0.8
