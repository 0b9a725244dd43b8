"""What a kill leaves, at every point where one can strike: the old or the new whole, and nothing for ever."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune import staging
from edgeprune.errors import InputError
from edgeprune.files import check_folder, check_new, staged_files, staged_folder, write_atomically

CALLS = (
    (os, "rename"), (os, "replace"), (os, "link"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (os, "fsync"),
    (os, "chmod"), (shutil, "rmtree"), (staging, "exchange"),
)  # fmt: skip
Content = dict[str, str]
OLD: Content = {"full.onnx": "old", "slim.onnx": "old", "web/a": "old", "web/b": "old", "kept.txt": "theirs"}
NEW: Content = {"slim.onnx": "new", "features.json": "new", "web/a": "new", "web/c": "new", "kept.txt": "theirs"}


def fill(folder: Path, content: Content) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> Content:
    files = (path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path.read_text() for path in files}
    return {name: text for name, text in named.items() if not name.startswith(".")}


def replace_folder(out: Path) -> None:
    with staged_folder(out, force=True) as folder:
        fill(folder, NEW)


def replace_files(out: Path) -> None:
    with staged_files(out, [out / "full.onnx", out / "slim.onnx", out / "web"]) as folder:
        fill(folder, {name: text for name, text in NEW.items() if name != "kept.txt"})


def killed(work: Callable[[], None], owner: Any, name: str, number: int) -> bool:
    """Whether the work, in a process of its own, came to call that function for the `number`th time, and died there."""
    process = os.fork()
    if process == 0:
        call, left = getattr(owner, name), [number]

        def dying(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        setattr(owner, name, dying)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def every_kill(place: Path, work: Callable[[Path], None]) -> Iterator[Path]:
    """The folder after each kill that there can be on the way from old to new."""
    for owner, name in CALLS:
        for number in range(1, 100):
            out = place / f"{name}{number}" / "run"
            fill(out, OLD)
            if not killed(lambda out=out: work(out), owner, name, number):  # type: ignore[misc]
                assert content(out) == NEW
                assert os.listdir(out.parent) == ["run"]
                shutil.rmtree(out.parent)
                break
            yield out


@pytest.mark.parametrize("work", [replace_folder, replace_files])
def test_a_kill_leaves_the_old_or_the_new_whole(tmp_path: Path, work: Callable[[Path], None]) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    if not staging.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders in one call")
    shutil.rmtree(tmp_path / "a"), shutil.rmtree(tmp_path / "b")
    found = []
    for out in every_kill(tmp_path, work):
        found.append(content(out))
        assert found[-1] in (OLD, NEW), out
        check_folder(out)
        assert content(out) == found[-1]
        assert os.listdir(out.parent) == ["run"]
        assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert OLD in found and NEW in found
    assert len(found) > 8


@pytest.mark.parametrize("work", [replace_folder, replace_files])
def test_where_two_folders_cannot_be_exchanged_the_next_start_makes_it_whole(
    tmp_path: Path, work: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "exchange", lambda first, second: False)
    monkeypatch.setattr("edgeprune.files.exchange", lambda first, second: False)
    n_mixed = 0
    for out in every_kill(tmp_path, work):
        n_mixed += not out.exists() or content(out) not in (OLD, NEW)
        check_new(out, force=True)
        check_folder(out)
        assert content(out) in (OLD, NEW), out
        assert os.listdir(out.parent) == ["run"]
        assert not [name for name in os.listdir(out) if name.startswith(".")]
    assert n_mixed > 0  # which is why the other way is taken where it can be


def test_a_file_that_was_being_written_goes_and_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("old")
    assert killed(lambda: write_atomically(tmp_path / "x.pt", b"new"), os, "replace", 1)
    assert len(os.listdir(tmp_path)) == 2
    check_new(tmp_path / "another.pt")
    assert os.listdir(tmp_path) == ["x.pt"]
    assert (tmp_path / "x.pt").read_text() == "old"


def test_what_a_living_process_holds_stays(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "run") as folder:
        (folder / "x").write_text("x")

        def write(file: Any) -> None:
            file.write(b"y")
            if os.fork() == 0:
                staging.clear(tmp_path)
                os._exit(0)
            os.wait()

        write_atomically(tmp_path / "y", write)
        check_new(tmp_path / "z")
        with staged_files(tmp_path) as inside:
            staging.clear(tmp_path)
            (inside / "w").write_text("w")
    assert sorted(os.listdir(tmp_path)) == ["run", "w", "y"]
    assert (tmp_path / "run" / "x").read_text() == "x"


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    names = [".film.abcd1234.part", ".edgeprune-notes", "x.edgeprune-abcd1234.part", ".edgeprune"]
    for name in names:
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".x.edgeprune-abcd1234.part").symlink_to(tmp_path / names[0])
    check_new(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, ".x.edgeprune-abcd1234.part"])


def test_what_was_left_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"precious": "x", "run/.edgeprune-abcd1234/.moves": "../precious\n..\n.\n\nslim.onnx", "run/slim.onnx": ""},
    )
    check_folder(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "x"
    assert os.listdir(tmp_path / "run") == []


def test_the_working_folder_is_written_into_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "run", OLD)
    monkeypatch.chdir(tmp_path / "run")
    before = os.stat(".")
    replace_files(Path("."))
    assert os.path.samestat(os.stat("."), before)
    assert content(Path.cwd()) == NEW
    assert not [name for name in os.listdir(".") if name.startswith(".")]


def test_files_are_put_into_a_folder_whose_own_folder_is_full_or_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "run", OLD)
    real = staging.held_folder

    def closed(folder: Path, start: str, kind: str = "") -> Any:
        if folder == tmp_path:
            raise PermissionError("closed")
        return real(folder, start, kind)

    monkeypatch.setattr(staging, "held_folder", closed)
    replace_files(tmp_path / "run")
    assert content(tmp_path / "run") == NEW


def test_a_failure_leaves_the_old_files(tmp_path: Path) -> None:
    fill(tmp_path / "run", OLD)
    with pytest.raises(InputError), staged_files(tmp_path / "run", [tmp_path / "run" / "full.onnx"]) as folder:
        (folder / "slim.onnx").write_text("half")
        raise InputError("no")
    assert content(tmp_path / "run") == OLD
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".")]
