"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path
from typing import BinaryIO

import pytest

from edgeprune.errors import InputError
from edgeprune.files import check_new, staged_folder, write_atomically


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_write_makes_the_file_and_its_folders(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "x.bin", b"one")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"one"
    assert _names(tmp_path / "a" / "b") == ["x.bin"]


def test_write_takes_a_function_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    write_atomically(target, lambda file: file.writelines([b"ne", b"w"]))
    assert target.read_bytes() == b"new"
    assert _names(tmp_path) == ["x.bin"]


def test_new_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["x.bin"]


def test_a_file_over_the_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the write, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match="expected a place that can be written to") as caught:
            write_atomically(tmp_path / "new" / "x.bin", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")

    with pytest.raises(InputError, match="a full disk"):
        write_atomically(tmp_path / "x.bin", full)
    assert _names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "x", tmp_path / "file" / "deep" / "x"):
        with pytest.raises(InputError, match="a file where a folder is needed"):
            check_new(place)
        with pytest.raises(InputError, match="a file where a folder is needed"):
            write_atomically(place, b"")


def test_a_read_only_place_is_refused_early() -> None:
    with pytest.raises(InputError, match="/proc/x/run: expected a place that can be written to"):
        check_new("/proc/x/run")
    with pytest.raises(InputError, match="expected a place that can be written to"), staged_folder("/proc/x/run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        check_new(tmp_path / "run")


def test_check_new_names_force_and_leaves_no_probe(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="--force"):
        check_new(tmp_path / "run")
    check_new(tmp_path / "run", force=True)
    check_new(tmp_path / "deep" / "er" / "run")
    assert _names(tmp_path) == ["run"]


def test_links_and_the_working_folder_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="got a link"):
        check_new(tmp_path / "link", force=True)
    monkeypatch.chdir(tmp_path / "real")
    for place in (tmp_path / "real", tmp_path, Path("."), Path("..")):
        with pytest.raises(InputError, match="working or home folder"):
            check_new(place, force=True)


def test_staged_folder_appears_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "runs" / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "runs" / "a").exists()
    assert (tmp_path / "runs" / "a" / "x").read_text() == "1"
    assert _names(tmp_path / "runs") == ["a"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "runs" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_staged_folder_leaves_nothing_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_folder(tmp_path / "runs" / "a") as folder:
        (folder / "x").write_text("1")
        raise error
    assert _names(tmp_path) == []


def test_staged_folder_with_force_replaces_the_old_one_only_on_success(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(InputError, match="--force"), staged_folder(out):
        pass
    with pytest.raises(KeyboardInterrupt), staged_folder(out, force=True) as folder:
        (folder / "new").write_text("new")
        raise KeyboardInterrupt
    assert _names(out) == ["old"]
    with staged_folder(out, force=True) as folder:
        (folder / "new").write_text("new")
    assert _names(out) == ["new"]
    assert _names(tmp_path) == ["run"]


def test_replacing_a_folder_does_not_follow_its_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "precious")
    with staged_folder(tmp_path / "run", force=True):
        pass
    assert _names(tmp_path / "precious") == ["x"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force"), staged_folder(tmp_path / "run"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").write_text("x")
    assert _names(tmp_path / "run") == ["theirs"]
    assert _names(tmp_path) == ["run"]


def test_an_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "run"):
        (tmp_path / "data.csv").read_text()
    assert _names(tmp_path) == []


def test_a_full_disk_in_the_body_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a full disk"), staged_folder(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _names(tmp_path) == []
