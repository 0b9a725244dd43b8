"""IDX files, the format of MNIST and its kin, plain or gzipped.

Format: two zero bytes, the type (8 = unsigned byte), the number of dims, each dim as a big-endian 32-bit size,
then the data.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from edgeprune.data.limits import check_size, check_unpacked
from edgeprune.errors import InputError
from edgeprune.lines import error_line
from edgeprune.reading import open_file

_UNSIGNED_BYTE = 8


def read_idx(path: Path, n_dims: int) -> np.ndarray:
    """The uint8 array of `n_dims` dims in an IDX file.

    Raises:
        InputError: not IDX, truncated, longer than its header says, or too large.
    """
    is_gzip = path.suffix == ".gz"
    try:
        with open_file(path, "idx") as raw, gzip.GzipFile(fileobj=raw) if is_gzip else raw as file:
            packed_bytes = os.fstat(raw.fileno()).st_size
            shape = _header(file, path, n_dims)
            n_bytes = math.prod(shape)
            if is_gzip:
                check_unpacked(n_bytes, packed_bytes, str(path))
            check_size(n_bytes, str(path))
            if not is_gzip and n_bytes + 4 + 4 * n_dims != packed_bytes:
                raise InputError(f"{path}: expected {n_bytes + 4 + 4 * n_dims:,} bytes, got {packed_bytes:,}")
            return _data(file, path, n_bytes).reshape(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as an IDX file: {error_line(error)}") from error


def _header(file: io.BufferedIOBase, path: Path, n_dims: int) -> tuple[int, ...]:
    head = file.read(4 + 4 * n_dims)
    expected = bytes([0, 0, _UNSIGNED_BYTE, n_dims])
    if head[:4] != expected:
        raise InputError(
            f"{path}: expected an IDX file of bytes with {n_dims} dims ({expected.hex()}), "
            f"got {head[:4].hex() or 'nothing'}"
        )
    if len(head) < 4 + 4 * n_dims:
        raise InputError(f"{path}: expected a header of {4 + 4 * n_dims} bytes, got {len(head)}")
    return struct.unpack(f">{n_dims}I", head[4:])


def _data(file: io.BufferedIOBase, path: Path, n_bytes: int) -> np.ndarray:
    data, filled = bytearray(n_bytes), 0
    view = memoryview(data)
    while filled < n_bytes:
        n_read = file.readinto(view[filled:])
        if not n_read:
            raise InputError(f"{path}: expected {n_bytes:,} bytes of data, got {filled:,}")
        filled += n_read
    if file.read(1):
        raise InputError(f"{path}: expected {n_bytes:,} bytes of data, got more")
    return np.frombuffer(data, np.uint8)
