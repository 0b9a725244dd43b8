"""Bounds that files from outside must keep, checked before memory is taken."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError

MAX_BYTES = 4 * 2**30  # of one data set in memory
MAX_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more times its size


def check_size(n_bytes: int, where: str) -> None:
    """Raise InputError when a data set would take more than MAX_BYTES."""
    if n_bytes > MAX_BYTES:
        raise InputError(f"{where}: expected at most {MAX_BYTES:,} bytes of data, got {n_bytes:,}")


def check_unpacked(n_bytes: int, packed_bytes: int, where: str) -> None:
    """Raise InputError when `packed_bytes` of deflate cannot hold the `n_bytes` that a header promises."""
    check_size(n_bytes, where)
    if n_bytes > MAX_DEFLATE_RATIO * packed_bytes:
        raise InputError(f"{where}: the header promises {n_bytes:,} bytes, got {packed_bytes:,} compressed ones")


def check_file(path: Path, kind: str) -> None:
    """Raise InputError unless `path` is a file that holds something."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise InputError(f"{path}: expected {kind}, got {got}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected {kind}, got an empty file")


def need(module: str, extra: str) -> Any:
    """Import an optional module, or raise InputError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{module.split('.')[0]} is not installed: pip install {extra}") from error


def one_line(error: BaseException) -> str:
    """The first line of what a foreign error says, with its type, e.g. "KeyError: 'lost'"."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
