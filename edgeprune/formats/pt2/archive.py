"""The zip around a .pt2: read with every size and name checked first, written with PyTorch's own writer."""

from __future__ import annotations

import io
import re
import zipfile

from torch.export.pt2_archive import PT2ArchiveWriter

from edgeprune.errors import InputError, UnsafeFileError

MAX_RECORDS = 200_000
# The root folder is named after the file, so a part may hold spaces and letters of any script.
_PART = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f]+"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


def list_records(data: bytes) -> list[zipfile.ZipInfo]:
    """The records of a zip in memory; nothing is unpacked.

    Raises:
        InputError: no zip, or a damaged one.
        UnsafeFileError: duplicate, absolute or climbing names, compressed records, or more bytes than the file has.
    """
    records = _records(data)
    if len(records) > MAX_RECORDS:
        raise UnsafeFileError(f"expected at most {MAX_RECORDS} records, got {len(records)}")
    _check_names([record.filename for record in records])
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise UnsafeFileError(f"record {record.filename!r}: expected it uncompressed, got a compressed record")
        if record.flag_bits & 0x1:
            raise UnsafeFileError(f"record {record.filename!r}: expected it in the clear, got an encrypted record")
    total_bytes = sum(record.file_size for record in records)
    if total_bytes > len(data):
        raise UnsafeFileError(f"expected records of at most {len(data)} bytes, the file's size, got {total_bytes}")
    return records


def zip_names(data: bytes) -> list[str]:
    """The names of a zip's records, whatever they hold; InputError where it is damaged."""
    return [record.filename for record in _records(data)]


def _records(data: bytes) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, IndexError) as error:
        raise InputError(f"expected a whole zip archive, got a truncated or damaged one ({error})") from error


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if len(name) > 1000 or not _NAME.fullmatch(name):
            raise UnsafeFileError(f"record {name[:80]!r}: expected a plain relative name")
        if name in seen:
            raise UnsafeFileError(f"record {name!r}: expected it once, got it twice")
        seen.add(name)


def read_records(data: bytes) -> dict[str, bytes]:
    """The records of a .pt2 by name, without the root folder that PyTorch puts before each.

    Raises:
        InputError, UnsafeFileError: as `list_records`, or a record is damaged.
    """
    records = list_records(data)
    roots = {record.filename.split("/")[0] for record in records}
    if len(roots) != 1:
        raise UnsafeFileError(f"expected all records under one folder, got {len(roots)} folders")
    contents: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for record in records:
                contents[record.filename.partition("/")[2]] = archive.read(record)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise InputError(f"expected a whole zip archive, got a damaged record ({error})") from error
    return contents


def write_records(records: dict[str, bytes]) -> bytes:
    """A .pt2 with these records; the same records give the same bytes."""
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, content in records.items():
            writer.write_bytes(name, content)
    return buffer.getvalue()
