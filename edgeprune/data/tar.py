"""What lies where in a tar file: headers alone are read, nothing is unpacked, no name in it is ever used as a path.

A shard is what somebody else wrote. Sizes are held against the file's own before anything is read by them; links,
devices and sparse files are refused, and so is a file that ends before its end mark: it was cut off.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown
from edgeprune.reading import open_file

_BLOCK = 512
_MAX_NAME = 65_536  # bytes of a header that only tells a long name
_LONG_NAME, _LONG_LINK, _OF_ONE, _OF_ALL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g"
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_CALLED = {
    tarfile.LNKTYPE: "a link", tarfile.SYMTYPE: "a link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe", tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file: its bytes are the `size` ones from `start`."""

    name: str
    start: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The files of an uncompressed tar file, in their order; folders are passed over.

    Raises:
        InputError: no tar file, a compressed one, one that was cut off, or one that holds what is no file.
    """
    with open_file(path, "shard") as file:
        size = os.fstat(file.fileno()).st_size
        long_name = None
        while True:
            header = _header(file, path)
            if header is None:
                return
            start = file.tell()
            _check_whole(header, size - start, path)
            if header.type in (_LONG_NAME, _OF_ONE):
                long_name = _long_name(file, header, path) or long_name
            elif header.type in _FILES:
                yield Member(long_name or header.name, start, header.size)
                long_name = None
            elif header.type in (tarfile.DIRTYPE, _OF_ALL):
                long_name = None
            elif header.type != _LONG_LINK:
                what = _CALLED.get(header.type, f"type {header.type!r}")
                raise InputError(f"{path}: expected files in a tar shard, got {what}, {shown(header.name)}")
            file.seek(start + -(-header.size // _BLOCK) * _BLOCK)


def _check_whole(header: tarfile.TarInfo, n_left: int, path: Path) -> None:
    if not 0 <= header.size <= n_left:
        raise InputError(
            f"{path}: expected a whole tar shard, got one that is cut off within {shown(header.name)}: "
            f"{max(0, n_left):,} of {header.size:,} bytes are there"
        )


def name_at(path: Path, start: int) -> str:
    """The name of the file whose bytes begin at `start`, for messages; a long one is cut."""
    with open_file(path, "shard") as file:
        file.seek(max(0, start - _BLOCK))
        header = _header(file, path)
        return "" if header is None else header.name


def _header(file: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The next header; None at the mark of the end."""
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise InputError(f"{path}: expected a whole tar shard, got one that is cut off: its end mark is missing")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros
        return None
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        packed = block[:2] == b"\x1f\x8b" or block[:3] == b"BZh" or block[:6] == b"\xfd7zXZ\x00"
        got = "a compressed one: unpack it first" if packed else f"none: {error_line(error)}"
        raise InputError(f"{path}: expected a plain tar shard, got {got}") from error


def _long_name(file: BinaryIO, header: tarfile.TarInfo, path: Path) -> str | None:
    """The name of the next file, where a header of its own tells it: GNU's or that of POSIX."""
    if header.size > _MAX_NAME:
        raise InputError(f"{path}: expected names of at most {_MAX_NAME:,} bytes, got {header.size:,}")
    content = file.read(header.size)
    if header.type == _LONG_NAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    stated = _records(content, path)
    if any(key == "size" or key.startswith("GNU.sparse") for key in stated):
        raise InputError(f"{path}: expected files of at most 8 GiB in a tar shard, got a larger or a sparse one")
    return stated.get("path")


def _records(content: bytes, path: Path) -> dict[str, str]:
    """What a header of POSIX tells, e.g. `b"14 path=a.jpg\\n"`."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        length, _, _ = content[:8].partition(b" ")
        n_bytes = int(length) if length.isdigit() else 0
        key, equals, value = content[len(length) + 1 : n_bytes - 1].partition(b"=")
        if not equals or content[n_bytes - 1 : n_bytes] != b"\n":
            raise InputError(f"{path}: expected a plain tar shard, got a damaged header")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[n_bytes:]
    return found
