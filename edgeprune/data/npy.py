"""The arrays in an .npz file, headers read with care: what NumPy makes of a hostile one may be an error of any kind."""

from __future__ import annotations

import ast
import math
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeprune.data.limits import check_size
from edgeprune.errors import InputError
from edgeprune.lines import error_line, one_line, shown

_MAX_HEADER = 4096  # bytes; NumPy writes some hundred
_MAX_MEMBERS = 10_000
_MAX_DIMS = 32
_MAX_SIZE = 2**48
_MAGIC = b"\x93NUMPY"
_LENGTHS = {b"\x01\x00": "<H", b"\x02\x00": "<I", b"\x03\x00": "<I"}  # by the version of the format
_NUMBERS = re.compile(r"[<>|=](?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16)|[US]\d{1,7})")


def members(stream: IO[bytes], path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The archive and its arrays by name, none of them read yet.

    Raises:
        InputError: no zip archive, a damaged one, or one with two arrays of a name.
    """
    try:
        archive = zipfile.ZipFile(stream)
        found = archive.infolist()
    except Exception as error:  # zipfile's reader meets damage with errors of many classes
        raise InputError(f"{path}: cannot be read as an .npz file: {error_line(error)}") from error
    if len(found) > _MAX_MEMBERS:
        raise InputError(f"{path}: expected at most {_MAX_MEMBERS:,} arrays, got {len(found):,}")
    named = {info.filename.removesuffix(".npy"): info for info in found}
    if len({name.lower() for name in named}) < len(found):
        raise InputError(f"{path}: expected each array once, got one twice")
    return archive, named


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    """An array of numbers or texts; its size is known from its header, and checked, before it is read.

    Raises:
        InputError: packed in another way than NumPy's, damaged, of another format, of Python objects, or too large.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{where}: expected a stored or deflated array, got compression type {info.compress_type}")
    try:
        with archive.open(info) as member:
            return _read(member, info, where)
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{where}: cannot be read as an array: {error_line(error)}") from error


def _read(member: IO[bytes], info: zipfile.ZipInfo, where: str) -> np.ndarray:
    start = member.read(8)
    length = _LENGTHS.get(start[6:8])
    if start[:6] != _MAGIC or length is None:
        raise InputError(f"{where}: expected the npy format 1 to 3, got {shown(start)}")
    (n_header,) = struct.unpack(length, member.read(struct.calcsize(length)))
    if n_header > _MAX_HEADER:
        raise InputError(f"{where}: expected a header of at most {_MAX_HEADER} bytes, got {n_header:,}")
    dtype, in_fortran_order, shape = _parsed(member.read(n_header).decode("utf-8", "replace"), where)
    n_bytes = math.prod(shape) * dtype.itemsize
    check_size(n_bytes, where)
    promised, got = 8 + struct.calcsize(length) + n_header + n_bytes, info.file_size
    if promised != got:
        raise InputError(f"{where}: the header promises {n_bytes:,} bytes, got {got - promised + n_bytes:,}")
    data = bytearray(n_bytes)
    filled = 0
    while filled < n_bytes:
        n_read = member.readinto(memoryview(data)[filled:])  # type: ignore[attr-defined]  # a ZipExtFile
        if not n_read:
            raise InputError(f"{where}: the header promises {n_bytes:,} bytes, got {filled:,}")
        filled += n_read
    flat = np.frombuffer(data, dtype) if n_bytes else np.empty(math.prod(shape), dtype)
    return flat.reshape(shape, order="F" if in_fortran_order else "C")


def _parsed(header: str, where: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """The type, the order and the shape that a header tells, e.g. `{'descr': '<f4', 'fortran_order': False, ...}`."""
    try:
        fields = ast.literal_eval(header.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise InputError(f"{where}: expected a header of NumPy's, got {one_line(header, 60)!r}") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{where}: expected a header with descr, fortran_order and shape, got {shown(fields)}")
    kind, in_fortran_order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if isinstance(kind, str) and kind.endswith("O"):
        raise InputError(f"{where}: expected an array of numbers or texts, got Python objects, which need unpickling")
    if not isinstance(kind, str) or not _NUMBERS.fullmatch(kind) or type(in_fortran_order) is not bool:
        raise InputError(f"{where}: expected an array of numbers or texts, got the type {shown(kind)}")
    if not _is_shape(shape):
        raise InputError(f"{where}: expected a shape of up to {_MAX_DIMS} sizes, got {shown(shape)}")
    return np.dtype(kind), in_fortran_order, shape


def _is_shape(value: Any) -> bool:
    sane = isinstance(value, tuple) and len(value) <= _MAX_DIMS
    return sane and all(type(size) is int and 0 <= size < _MAX_SIZE for size in value)
