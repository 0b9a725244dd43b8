"""Files and folders are written whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from edgeprune.errors import InputError
from edgeprune.staging import OURS, clear, exchange, held_file, held_folder, move_all, prefix, stepped_aside

_REASONS = {
    errno.ENOSPC: "a full disk",
    errno.EDQUOT: "a used-up disk quota",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "a read-only file system",
    errno.ENOENT: "no such folder",
    errno.ENOTDIR: "a file where a folder is needed",
    errno.EEXIST: "a file where a folder is needed",
    errno.EISDIR: "a folder where a file is needed",
    errno.ENAMETOOLONG: "a name that is too long",
    errno.EFBIG: "a file larger than the system allows",
}
Kind = Literal["file", "folder"]


def real_path(path: Path) -> Path:
    """Where a path leads, its links followed; of a ring of links, which cannot be opened, one of them."""
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError there


# The disk's state, whichever file it struck first.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> None:
    """Write `content` to `path`: after an error or a kill there is the old file or the new one, never a part.

    Args:
        path: the file; an existing one is replaced (a link itself, not what it points to). Missing folders are made.
        content: the bytes, or a function that writes them to the open file.

    Raises:
        InputError: the disk is full, or the place cannot be written to.
    """
    target = Path(os.path.abspath(path))
    with writing_to(target), parents_of(target):
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
        with held_file(target) as (file, temporary):
            try:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary, 0o666 & ~_umask())
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        _sync_folder(target.parent)


@contextlib.contextmanager
def staged_folder(out: str | os.PathLike[str], force: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out`; when the body ends without an error it takes the place of `out`.

    With `force` an existing `out` is replaced then, and left as it was if the body fails or is interrupted.

    Raises:
        InputError: as `check_new`, or the disk is full.
    """
    target = Path(os.path.abspath(out))
    check_new(target, force, "folder")
    with writing_to(target), parents_of(target):
        with held_folder(target.parent, prefix(target), ".part") as staged:
            try:
                with named_as(target, staged):
                    yield staged
                staged.chmod(0o777 & ~_umask())
                _swap(staged, target, force)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise


@contextlib.contextmanager
def named_as(target: Path, staged: str | Path) -> Iterator[None]:
    """Errors about the temporary folder `staged` tell of `target` instead, the place that the user knows."""
    try:
        yield
    except InputError as error:
        if str(staged) not in str(error):
            raise
        raise type(error)(str(error).replace(str(staged), str(target))) from error


@contextlib.contextmanager
def kept_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `path` as a folder, made if it is missing; if the body fails, what was made of it goes again.

    Raises:
        InputError: it is not a folder, or cannot be made or written to.
    """
    target = Path(os.path.abspath(path))
    with writing_to(target), parents_of(target):
        made = not os.path.lexists(target)
        if made:
            target.mkdir()
        elif not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(target))
        try:
            yield Path(path)
        except BaseException:
            if made:
                shutil.rmtree(target, ignore_errors=True)
            raise


@contextlib.contextmanager
def staged_files(folder: Path, earlier: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a folder inside `folder` whose files move there when the body ends; those `earlier` ones it lacks go then.

    Staged inside it, because moving the files then cannot fail for want of space. They move as one set, see `move_all`.
    """
    folder = Path(os.path.abspath(folder))
    with kept_folder(folder), held_folder(folder, f".{OURS}") as place:
        try:
            with named_as(folder, place):
                yield place
            move_all(place, folder, {path.name for path in earlier})
        finally:
            shutil.rmtree(place, ignore_errors=True)
        _sync_folder(folder)


def _swap(staged: Path, target: Path, force: bool) -> None:
    """Put `staged` in the place of `target`: in one call where the system can.

    Else the old one steps aside first, and comes back if that fails, or at the next start after a kill.
    """
    _check_absent(target, force, "folder")
    if not os.path.lexists(target):
        os.rename(staged, target)
    elif exchange(staged, target):
        _sync_folder(target.parent)
        shutil.rmtree(staged, ignore_errors=True)  # links in it are removed, not followed
    else:
        with stepped_aside(target):
            os.rename(staged, target)
    _sync_folder(target.parent)


def check_new(path: str | os.PathLike[str], force: bool = False, kind: Kind | None = None) -> None:
    """Refuse an output place early, so that a long run does not fail at its end.

    Args:
        path: where a file or folder is to be written.
        force: whether an existing one may be replaced.
        kind: what is to be written; one of the other kind is never replaced.

    Raises:
        InputError: it exists and `force` is not given; it is a link, the working folder or a folder around it;
            or its folder cannot be written to.
    """
    target = Path(os.path.abspath(path))
    clear(target.parent)
    _check_absent(target, force, kind)
    _probe(target, target.parent)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse early a folder that files are to be added to: it may exist, or not yet.

    Raises:
        InputError: it is not a folder, or it cannot be made or written to.
    """
    target = Path(os.path.abspath(path))
    clear(target.parent)
    clear(target)
    _probe(target, target)


def _probe(target: Path, folder: Path) -> None:
    """Make a file in `folder` and delete it: permissions alone do not tell (root, read-only mounts)."""
    with writing_to(target):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # tells of a name that is too long, or of a file on the way
        while not os.path.lexists(folder):
            folder = folder.parent
        descriptor, probe = tempfile.mkstemp(".probe", prefix(target), folder)
        os.close(descriptor)
        os.unlink(probe)


def _check_absent(target: Path, force: bool, kind: Kind | None) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise InputError(f"{target}: expected a new place to write to, got an existing one; --force replaces it")
    if target.is_symlink():
        raise InputError(f"{target}: expected a file or folder to replace, got a link")
    got = "folder" if target.is_dir() else "file"
    if kind not in (None, got):
        raise InputError(f"{target}: expected a {kind} to replace, got a {got}, so another place is needed")
    if target.is_dir() and any(target in (folder, *folder.parents) for folder in (Path.cwd(), Path.home())):
        raise InputError(
            f"{target}: expected a folder that can be replaced, got the working or home folder or one around"
        )


@contextlib.contextmanager
def parents_of(target: Path) -> Iterator[None]:
    """Make the missing folders above `target`; those that were made go again if the body fails."""
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def writing_to(target: Path) -> Iterator[None]:
    """An OSError about the place that is written to becomes an InputError; one about another file stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL and not _is_about(error, target):
            raise
        reason = _REASONS.get(error.errno or 0, error.strerror or type(error).__name__)
        raise InputError(f"{target}: expected a place that can be written to, got {reason}") from error


def _is_about(error: OSError, target: Path) -> bool:
    if not isinstance(error.filename, (str, os.PathLike)):
        return False
    path = Path(os.path.abspath(error.filename))
    return path in (target, *target.parents) or any(part.startswith(prefix(target)) for part in path.parts)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
