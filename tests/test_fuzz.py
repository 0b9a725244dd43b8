"""A small part of scripts/fuzz: three mutants of each kind of file, read by the real commands in this process."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from mutants import command, judge, kinds  # noqa: E402

MUTANTS = [(kind, number) for kind in kinds.SHARES for number in range(3)]


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return kinds.kinds()


def test_every_kind_has_its_share() -> None:
    assert sum(kinds.SHARES.values()) == 3500


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("kind", "number"), MUTANTS)
def test_a_mutant_is_taken_or_refused_in_one_line(tmp_path: Path, good: dict[str, Any], kind: str, number: int) -> None:
    if kind not in good:
        pytest.skip("tables of Arrow: in the extra arrow, whose wheel of 55 MB is not in dev")
    kinds.mutant(good[kind], random.Random(f"0/{kind}/{number}"), tmp_path)
    started = time.process_time()
    code, out, err = command.run_in(tmp_path, good[kind].arguments)
    seconds = time.process_time() - started
    outcome = judge.Outcome(code, seconds, 0.0, out, err, judge.has_run(tmp_path))
    assert not outcome.faults(), (outcome.message, outcome.faults())


def test_the_judge_is_not_blind() -> None:
    """What is wrong with an outcome is seen, each by itself."""
    line = "edgeprune: m.pt: expected a model\n"
    fine = judge.Outcome(2, 0.1, 10.0, "", line)
    assert not fine.faults() and not judge.Outcome(0, 0.1, 10.0, "table", "load\n").faults()
    wrong = (
        judge.Outcome(3, 0.1, 10.0, "", line),
        judge.Outcome(-9, 0.1, 10.0, "", ""),
        judge.Outcome(2, 21.0, 10.0, "", line),
        judge.Outcome(2, 0.1, 1100.0, "", line),
        judge.Outcome(2, 0.1, 10.0, "", line * 2),
        judge.Outcome(2, 0.1, 10.0, "", "edgeprune: " + "x" * 300),
        judge.Outcome(2, 0.1, 10.0, "\x1b[2J", line),
        judge.Outcome(2, 0.1, 10.0, "", line + "Traceback"),
        judge.Outcome(0, 0.1, 10.0, "", line),
        judge.Outcome(2, 0.1, 10.0, "", line, ran=True),
        judge.Outcome(1, 0.1, 10.0, "", "edgeprune: unexpected KeyError"),
    )
    assert all(outcome.faults() for outcome in wrong)
