"""A compress run that is killed goes on with --resume and ends with the same bytes: real processes, real kills."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import CNN, MLP, ROOT, Result, done, killed_at, names, refused, run, snapshot

sys.path.insert(0, str(ROOT / "scripts"))

from measure.kills import killed_and_resumed  # noqa: E402

QUICKLY = ("--keep-macs", "0.4", "--input-features", "off", "--finetune-epochs", "2", "--threads", "1")
FIRST = "000002.training"  # after what cuts by two criteria lose
RECIPE = ("--augment", "crop-flip", "--mixup", "0.2", "--ema", "0.9")  # whose average is a part of the state
ASKED = ("compress", MLP, *QUICKLY, *RECIPE, "--out")


def networks(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "plan.json").read_bytes(), (folder / "slim.pt2").read_bytes()


def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    done(tmp_path, *ASKED, "whole")
    # Files put in their places: the dense network's, what is asked for, a training's state, what that left.
    assert killed_at(tmp_path, "os.replace", 4, *ASKED, "run") == -9
    state = tmp_path / "run.compressing"
    assert (state / "asked.json").is_file() and (state / FIRST).is_file()
    assert not (tmp_path / "run").exists()

    line = refused(tmp_path, *ASKED, "run")
    assert "run.compressing: expected no earlier run, got the state of an unfinished one; --resume goes on" in line
    before = snapshot(state)
    other = run(tmp_path, *ASKED, "run", "--resume", "--seed", "1")
    assert (other.code, other.out, snapshot(state)) == (2, "", before)
    line = other.err.splitlines()[-1]
    assert (
        "run.compressing: this is the state of another run; " in line
        and "--seed: the kept run has 0, this command says 1" in line
    )

    result = done(tmp_path, *ASKED, "run", "--resume")
    assert f"resumed after epoch 1/2 of run.compressing/{FIRST}" in result.err
    assert networks(tmp_path / "run") == networks(tmp_path / "whole")
    assert names(tmp_path) == {"run", "whole"}
    asked = [json.loads((tmp_path / name / "run.json").read_text())["asked"] for name in ("run", "whole")]
    assert {**asked[0], "out": ""} == {**asked[1], "out": ""}

    before = snapshot(tmp_path)
    again = done(tmp_path, *ASKED, "run", "--resume")
    assert "run: this run is done; nothing is left to resume" in again.err
    assert snapshot(tmp_path) == before
    line = refused(tmp_path, *ASKED, "run", "--resume", "--seed", "1")
    assert (
        "run: this is another run, which is done; --seed: the kept run has 0, this command says 1; --force replaces it"
        in line
    )


def test_without_a_name_the_last_unfinished_run_goes_on(tmp_path: Path) -> None:
    from edgeprune.commands.resolve import next_run

    (tmp_path / "runs").mkdir()
    for name in ("m-1", "m-2.compressing", "m-3.compressing", "m-x.compressing", "n-9.compressing"):
        (tmp_path / "runs" / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert next_run("m", ".compressing", resume=True) == Path("runs/m-3")
        assert next_run("m", ".compressing") == Path("runs/m-4")
        assert next_run("o", ".compressing", resume=True) == Path("runs/o-1")


@pytest.mark.sweep
def test_thirty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    asked = ("compress", CNN, "--max-drop", "1", "--max-finetunings", "6", "--finetune-epochs", "2", "--threads", "1")
    found = killed_and_resumed(tmp_path, asked, n_kills=30)
    assert found.n_kills == 30 and found.n_states > 0
    assert found.n_same == found.n_ends > 0


def test_a_fresh_start_is_forced(tmp_path: Path) -> None:
    left = tmp_path / "run.compressing"
    left.mkdir()
    (left / "results.jsonl").write_text("of something else\n")
    result: Result = run(tmp_path, *ASKED, "run", "--force")
    assert result.code == 0, result.err
    assert names(tmp_path) == {"run"}
