"""What lies beside a place while it is written: names, whose they are, what is left of the dead, and one-call swaps.

A living process holds a lock on every temporary file and folder of its own. What nobody holds was left by a process
that was killed, and goes when the next one writes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # no such locks on this system: whose a temporary file is cannot be told there
    fcntl = None  # type: ignore[assignment]

OURS = "edgeprune-"
_MOVES = ".moves"  # in a folder of staged files: all are there; its lines name what is stale
_LEFT = re.compile(rf"\.(?P<name>.*\.)?{OURS}[a-z0-9_]{{8}}(?P<kind>\.part|\.old|\.probe)?")
_MOST_LINKS = 2000  # of a folder that is exchanged as a whole
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EXDEV, errno.EBUSY)


def prefix(target: Path) -> str:
    """How the names of what is staged for a place begin."""
    return f".{target.name[:100]}.{OURS}"


@contextlib.contextmanager
def held_file(target: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Yield a new file beside `target`, open for writing, and its path; it is this process's until the end."""
    while True:
        descriptor, path = tempfile.mkstemp(".part", prefix(target), target.parent)
        if _hold(descriptor, path):
            break
        os.close(descriptor)
    with open(descriptor, "wb") as file:
        yield file, path


@contextlib.contextmanager
def held_folder(folder: Path, start: str, kind: str = "") -> Iterator[Path]:
    """Yield a new folder in `folder`, which is this process's until the end; it stays then, if nobody removes it."""
    while True:
        path = tempfile.mkdtemp(kind, start, folder)
        descriptor = os.open(path, os.O_RDONLY)
        if _hold(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield Path(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[bool]:
    """Hold a folder that is there until the end; yield whether no other process does. It stays."""
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def stepped_aside(target: Path) -> Iterator[None]:
    """Move a folder out of the way while another takes its place; it comes back if that fails, else it goes."""
    with held_folder(target.parent, prefix(target), ".old") as aside:
        (aside / "old").mkdir()
        os.rename(target, aside / "old" / target.name)
        try:
            yield
        except BaseException:
            os.rename(aside / "old" / target.name, target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _hold(descriptor: int, path: str) -> bool:
    """Lock what was just made; False where another process took it for left before that."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is ever cleared there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def clear(folder: Path) -> None:
    """Remove from `folder` what processes that were killed left there; bring to its end what they had begun to move."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        left = [path for path in sorted(folder.iterdir()) if _LEFT.fullmatch(path.name) and not path.is_symlink()]
        for path in left:
            with contextlib.suppress(OSError):
                _clear_one(path)


def _clear_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.is_dir():
            path.unlink()
            return
        _finish(path)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _finish(path: Path) -> None:
    """End what was begun: put back a folder that had stepped aside, or move the files that were all there."""
    for aside in path.glob("old/*") if path.suffix == ".old" else ():
        if not os.path.lexists(path.parent / aside.name):
            os.rename(aside, path.parent / aside.name)
    if (path / _MOVES).is_file():
        _move(path, path.parent, (path / _MOVES).read_text().splitlines())


def move_all(staged: Path, folder: Path, stale: Iterable[str]) -> None:
    """Move everything in `staged`, a folder inside `folder`, up to there, and remove what is stale.

    Where the system can, `folder` changes at once, in one call: it is linked into another, which is filled and takes
    its place. Else a kill on the way leaves some moved and some not, until the next `clear`, which moves the rest.
    """
    gone = [name for name in stale if not os.path.lexists(staged / name)]
    if _swap_whole(staged, folder, gone):
        return
    started = staged / f"{_MOVES}.part"
    started.write_text("\n".join(gone))
    os.replace(started, staged / _MOVES)
    _move(staged, folder, gone)


def _move(staged: Path, folder: Path, stale: Iterable[str]) -> None:
    """Move one after the other; may be begun again at any point."""
    for path in sorted(staged.iterdir()):
        target = folder / path.name
        if path.name == _MOVES:
            continue
        if target.is_dir() and not target.is_symlink():
            if not path.is_dir() or not exchange(path, target):
                shutil.rmtree(target)
                os.rename(path, target)
        else:
            os.replace(path, target)
    for name in stale:
        if os.path.basename(name) == name and name not in ("", os.curdir, os.pardir):
            _remove(folder / name)


def _swap_whole(staged: Path, folder: Path, stale: Iterable[str]) -> bool:
    """Put a folder with all of `folder` and all that is staged in its place; False where that cannot be."""
    try:
        seen = set(os.listdir(folder))
        if not _may_be_swapped(folder) or any(_LEFT.fullmatch(name) for name in seen - {staged.name}):
            return False  # another process writes there too
        with held_folder(folder.parent, prefix(folder), ".part") as other:
            try:
                shutil.copymode(folder, other)
                done = _linked(folder, other, _MOST_LINKS) and _overlaid(staged, other, stale)
                if not done or not exchange(other, folder):
                    return False
                for name in set(os.listdir(other)) - seen:  # what somebody else wrote meanwhile
                    with contextlib.suppress(OSError):
                        os.rename(other / name, folder / name)
            finally:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # the folder around it is not to be written to, or full
        return False
    return True


def _may_be_swapped(folder: Path) -> bool:
    """Whether it is a plain folder of this user's, and not the working or home folder or one around."""
    try:
        own = folder.stat().st_uid == os.geteuid() and not folder.is_symlink() and not os.path.ismount(folder)
        return own and folder not in (Path.cwd(), *Path.cwd().parents, Path.home(), *Path.home().parents)
    except OSError:
        return False


def _overlaid(staged: Path, other: Path, stale: Iterable[str]) -> bool:
    """Link what is staged over what `other` holds, and remove there what is stale."""
    for name in (*stale, *os.listdir(staged)):
        _remove(other / name)
    return _linked(staged, other, _MOST_LINKS)


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def exchange(first: Path, second: Path) -> bool:
    """Let two places change names in one call; False where the system or the file system cannot.

    Raises:
        OSError: it can, but not these two.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    if call(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def _linked(folder: Path, other: Path, most: int) -> bool:
    """Fill `other` with what `folder` holds, by links; False where they cannot be made, or would be too many."""
    entries = [path for path in folder.rglob("*") if not _LEFT.fullmatch(path.relative_to(folder).parts[0])]
    if len(entries) > most:
        return False
    try:
        for path in sorted(entries):
            there = other / path.relative_to(folder)
            if path.is_dir() and not path.is_symlink():
                there.mkdir()
                shutil.copystat(path, there)
            else:
                os.link(path, there, follow_symlinks=False)
        return True
    except OSError:
        return False
