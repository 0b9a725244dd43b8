"""Bounds that files from outside must keep, checked before memory is taken."""

from __future__ import annotations

import importlib
from typing import Any

from edgeprune.errors import InputError

MAX_CLASSES = 100_000
MAX_BYTES = 4 * 2**30  # of one data set in memory
# A packed file may unpack to so many times its size, or to the first so many bytes: deflate itself makes 1,032 zeros of
# a byte, and numbers that were measured hardly shrink to a tenth.
MAX_RATIO = 32
FREE_BYTES = 64 * 2**20


def check_size(n_bytes: int, where: str) -> None:
    """Raise InputError when a data set would take more than MAX_BYTES."""
    if n_bytes > MAX_BYTES:
        raise InputError(f"{where}: expected at most {MAX_BYTES:,} bytes of data, got {n_bytes:,}")


def check_unpacked(n_bytes: int, packed_bytes: int, where: str) -> None:
    """Raise InputError when `packed_bytes` of deflate are too few for the `n_bytes` that a header promises."""
    check_size(n_bytes, where)
    most = max(FREE_BYTES, MAX_RATIO * packed_bytes)
    if n_bytes > most:
        raise InputError(
            f"{where}: expected at most {most:,} bytes in {packed_bytes:,} compressed ones, got a header that promises "
            f"{n_bytes:,}; save it uncompressed"
        )


def need(module: str, extra: str) -> Any:
    """Import an optional module, or raise InputError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{module.split('.')[0]} is not installed: pip install {extra}") from error
