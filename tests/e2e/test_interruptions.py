"""What is left when a run is stopped, killed or runs out of disk: real processes, real file systems."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import MLP, NETS, ROOT, environment, names, refused, run, snapshot, start

LONG = ("compress", MLP, "--keep-macs", "0.2", "--finetune-epochs", "5000", "--threads", "1", "--out", "runs/long")


def _finetuning(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command that has come to its training."""
    process = start(folder, *arguments)
    assert process.stderr is not None
    for line in process.stderr:
        if "finetune" in line or ": train down" in line or line.startswith("train "):
            return process
    raise AssertionError(f"ended before it trained, with {process.wait()}")


def _interrupted(process: subprocess.Popen[str]) -> list[str]:
    """Stop a command as Ctrl-C does; the lines that it said last."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.endswith(INTERRUPTED)
    assert "Traceback" not in err
    return err.splitlines()


def test_ctrl_c_in_train_leaves_what_resume_goes_on_with(tmp_path: Path) -> None:
    options = ("--data", "digits", "--epochs", "5000", "--out", "new/m.pt")
    process = _finetuning(tmp_path, "train", "--arch", f"{NETS}:mlp", *options)
    while not (tmp_path / "new" / "m.pt.training").exists():
        assert process.poll() is None
    *_, said, _ = _interrupted(process)
    assert said == "new/m.pt.training holds the state after the last whole epoch; --resume goes on with it"
    assert set(snapshot(tmp_path)) == {"new", "new/m.pt.training"}


SWALLOWS = """
import os, signal, time
from torch import nn

def net():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
    except BaseException:
        pass
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
INTERRUPTED = "edgeprune: interrupted; nothing half-written is left\n"


def test_ctrl_c_that_something_swallows_ends_the_work_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(SWALLOWS)
    before = snapshot(tmp_path)
    options = ("--arch", "nets.py:net", "--data", "digits", "--epochs", "5000", "--out", "m.pt")
    process = start(tmp_path, "train", *options, env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"})
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", INTERRUPTED)
    assert snapshot(tmp_path) == before


def test_ctrl_c_while_the_command_is_still_being_imported(tmp_path: Path) -> None:
    """In an import that may fail, as libraries have many."""
    (tmp_path / "typer.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    process = start(tmp_path, "--help", env={**environment(), "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", INTERRUPTED)


def test_ctrl_c_in_compress_leaves_the_earlier_run_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "runs" / "long").mkdir(parents=True)
    (tmp_path / "runs" / "long" / "run.json").write_text("{}")
    before = snapshot(tmp_path)
    process = _finetuning(tmp_path, *LONG, "--force")
    assert any(name.endswith(".part") for name in names(tmp_path / "runs"))
    while not list((tmp_path / "runs" / "long.compressing").glob("*.training")):
        assert process.poll() is None
        time.sleep(0.05)
    *_, said, _ = _interrupted(process)
    assert said == "runs/long.compressing holds what the search has come to; --resume goes on with it"
    after = snapshot(tmp_path)
    assert {name for name in after if name not in before} == {
        f"runs/long.compressing{file}" for file in ("", "/asked.json", "/000000.training")
    }
    assert {name: after[name] for name in before} == before


def test_a_kill_leaves_no_run_under_its_final_name(tmp_path: Path) -> None:
    process = _finetuning(tmp_path, *LONG)
    process.kill()
    process.communicate(timeout=300)
    assert not (tmp_path / "runs" / "long").exists()
    assert all(name.endswith((".part", ".compressing")) for name in names(tmp_path / "runs"))
    assert "expected a run to export, got none" in refused(tmp_path, "export", "--onnx")


@contextlib.contextmanager
def _no_large_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB: every write fails as on a full disk, root's too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _stopped(folder: Path, *arguments: str) -> str:
    """The error of a command that fails for want of space; nothing is left of it."""
    before = snapshot(folder)
    result = run(folder, *arguments)
    assert (result.code, result.out) == (2, ""), result
    assert "Traceback" not in result.err
    assert sum(line.startswith("edgeprune: ") for line in result.err.splitlines()) == 1
    assert snapshot(folder) == before
    return result.err.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--arch", f"{NETS}:mlp", "--data", "digits", "--epochs", "1", "--out", "new/m.pt"),
        ("export", "--onnx", MLP, "--out", "new/onnx"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_full_disk_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with _no_large_files():
        line = _stopped(tmp_path, *arguments)
    assert arguments[-1] in line and ".edgeprune-" not in line
    assert "expected a place that can be written to, got a file larger than the system allows" in line


def test_a_full_file_system_leaves_nothing(tmp_path: Path) -> None:
    """A disk that is really full, where one can be mounted; elsewhere the limit above has stood in for it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    # Of a search that has come to results these would stay, for --resume: this one has none.
    arguments = ("compress", MLP, "--keep-macs", "0.5", "--finetune-epochs", "0", "--criterion", "l2", "--out")
    if mounted.returncode != 0:
        with _no_large_files():
            line = _stopped(tmp_path, *arguments, "disk/run")
        assert "disk/run/slim.pt2: expected a place that can be written to" in line
        return
    try:
        line = _stopped(tmp_path, *arguments, "disk/run")
        assert "disk/run/slim.pt2: expected a place that can be written to, got a full disk" in line
    finally:
        subprocess.run(["umount", str(disk)], check=True)
