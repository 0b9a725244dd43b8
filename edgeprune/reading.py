"""Files from outside, read with care: each kind has one limit, and sizes are known before memory is taken.

What is no regular file is refused: a pipe, a socket or a terminal would be waited for without end. JSON is bounded in
its depth and its numbers; NaN and infinity are none.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from edgeprune.errors import InputError
from edgeprune.lines import error_line, one_line

_MIB = 2**20
MAX_DEPTH = 64  # lists and objects inside each other, of a JSON document
MAX_DIGITS = 20  # of a whole number in JSON; 64 bits take 19 and a sign
_MAX_NUMBER = 400  # characters of any other


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of file: what it is called, and how many bytes it may have."""

    name: str
    max_bytes: int


# docs/SECURITY.md lists them.
LIMITS: Mapping[str, Limit] = {
    "model": Limit("a model file", 16 * 1024 * _MIB),
    "training": Limit("the state of a training", 16 * 1024 * _MIB),
    "results": Limit("the results of a search", 256 * _MIB),
    "onnx": Limit("an ONNX file", 2**31 - 1),  # protobuf's own limit, and that of flatbuffers
    "npz": Limit("an .npz file", 4096 * _MIB),
    "idx": Limit("an IDX file", 4096 * _MIB),
    "csv": Limit("a CSV file", 1024 * _MIB),
    "parquet": Limit("a Parquet or Arrow file", 64 * 1024 * _MIB),
    "image": Limit("an image", 256 * _MIB),
    "sound": Limit("a sound file", 1024 * _MIB),
    "hf": Limit("a JSON file of a saved data set", 64 * _MIB),
    "shard": Limit("a tar shard", 64 * 1024 * _MIB),
    "code": Limit("a Python file", 64 * _MIB),
    "plan": Limit("a plan.json", 256 * _MIB),
    "run": Limit("a run.json", 64 * _MIB),
    "device": Limit("a device.json", 16 * _MIB),
    "features": Limit("a features.json", 256 * _MIB),
    "groups": Limit("a JSON file of feature groups", 16 * _MIB),
    "prices": Limit("a file of feature prices", 16 * _MIB),
    "recipe": Limit("a recipe file", _MIB),
    "ids": Limit("a file of ids", 64 * _MIB),
    "weights": Limit("a file of class weights", 16 * _MIB),
}


def open_file(path: str | os.PathLike[str], kind: str) -> io.BufferedReader:
    """The file, open for reading: a regular one that is not empty and keeps the limit of its kind in `LIMITS`.

    Raises:
        InputError: nothing is there, or something else; says what.
    """
    limit = LIMITS[kind]
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check(path, os.stat(path), limit)  # first: to open a device may already do something
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise InputError(f"{os.fspath(path)}: expected {limit.name}, got {_reason(error)}") from error
    try:
        _check(path, os.fstat(descriptor), limit)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


class Timed(io.RawIOBase):
    """A file that can be read for so many seconds, for libraries whose work on it nothing else bounds."""

    def __init__(self, file: BinaryIO, max_seconds: float) -> None:
        self._file, self._end = file, time.monotonic() + max_seconds
        self._max_seconds = max_seconds

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """The next bytes; TimeoutError once the time is up."""
        if time.monotonic() > self._end:
            raise TimeoutError(f"one that takes more than {self._max_seconds:g} s to read")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()


def read_file(path: str | os.PathLike[str], kind: str) -> bytes:
    """All bytes of the file; errors as `open_file`."""
    limit = LIMITS[kind]
    with open_file(path, kind) as file:
        try:
            content = file.read(os.fstat(file.fileno()).st_size + 1)
        except OSError as error:
            raise InputError(f"{os.fspath(path)}: expected {limit.name}, got {_reason(error)}") from error
    if len(content) > limit.max_bytes:
        raise InputError(f"{os.fspath(path)}: expected {limit.name} of at most {limit.max_bytes:,} bytes, got more")
    return content


def read_json(path: str | os.PathLike[str], kind: str) -> Any:
    """The JSON document in the file; errors as `open_file` and `parse_json`."""
    return parse_json(read_file(path, kind), f"{os.fspath(path)}: expected {LIMITS[kind].name}")


def parse_json(content: bytes | str, expected: str) -> Any:
    """What a JSON text says.

    Args:
        content: the text; bytes are UTF-8.
        expected: how an error begins, e.g. "plan.json: expected a plan".

    Raises:
        InputError: no JSON, nested deeper than MAX_DEPTH, a number of more than MAX_DIGITS digits or out of range.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
    except RecursionError as error:
        raise InputError(f"{expected}, got JSON of more than {MAX_DEPTH} levels") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{expected}, got no UTF-8 text") from error
    except ValueError as error:
        raise InputError(f"{expected}, got no JSON: {one_line(str(error), 120)}") from error
    _check_depth(value, expected)
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= _MAX_NUMBER else math.nan
    if not math.isfinite(value):
        raise ValueError(f"the number {one_line(text, 40)}")
    return value


def _check_depth(value: Any, expected: str) -> None:
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MAX_DEPTH):
        parts = (item.values() if type(item) is dict else item for item in level)
        level = [inner for part in parts for inner in part if type(inner) in (dict, list)]
        if not level:
            return
    raise InputError(f"{expected}, got JSON of more than {MAX_DEPTH} levels")


def _check(path: str | os.PathLike[str], state: os.stat_result, limit: Limit) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{os.fspath(path)}: expected {limit.name}, got {_called(state.st_mode)}")
    if state.st_size == 0:
        raise InputError(f"{os.fspath(path)}: expected {limit.name}, got an empty file")
    if state.st_size > limit.max_bytes:
        raise InputError(
            f"{os.fspath(path)}: expected {limit.name} of at most {limit.max_bytes:,} bytes, got {state.st_size:,}"
        )


def _called(mode: int) -> str:
    """What a place is that is no regular file."""
    kinds = (
        (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    )  # fmt: skip
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "nothing there"
    if isinstance(error, OSError):
        return "a ring of links" if error.errno == errno.ELOOP else (error.strerror or error_line(error)).lower()
    return "a name that is no path"  # a NUL in it
