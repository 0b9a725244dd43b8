"""Edits of zip archives: .pt, .pt2 and .npz, their records and the pickles, documents and array headers in them."""

from __future__ import annotations

import functools
import io
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

from mutants.documents import JSON
from mutants.edits import BLIND, MARKER, ODD_NAMES, Edit

_CALL = f"cposix\nsystem\n(V touch {MARKER}\ntR".encode()
_HOSTILE_PICKLES = (
    b"\x80\x02" + _CALL + b".",
    b"\x80\x02cbuiltins\nexec\n(Vopen('" + MARKER.encode() + b"','w')\ntR.",
    b"\x80\x02}q\x00(X\x01\x00\x00\x00wq\x01" + _CALL + b"u.",
    b"\x80\x02]q\x00" + b"(h\x00h\x00lq\x00" * 60 + b".",  # a list of two lists of two lists ...
    b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
    b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    b"\x80\x02\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000 + b".",
    b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x7f.",
    b"\x80\x02X\xff\xff\xff\x7fabc.",
    b"\x80\x02r\xff\xff\xff\x7f.",
    b"\x80\x02ctorch\nempty\n(J\xff\xff\xff\x7ftR.",
    b"\x80\x02}X\x06\x00\x00\x00formatX\x19\x00\x00\x00edgeprune-checkpoint/" + b"\x1b[2J1" + b"s.",
    b"",
    b"\x80\x02.",
    b"\x80\x7fN.",
)


def odd_record(content: bytes, choose: random.Random) -> bytes:
    """A record is missing, doubled, of another name, packed, or holds something else."""
    records = _records(content)
    at = choose.randrange(len(records))
    name, data = records[at]
    packed = zipfile.ZIP_STORED
    what = choose.randrange(7)
    if what == 0:
        del records[at]
    elif what == 1:
        records.append((name, data[::-1]))
    elif what == 2:
        odd = choose.choice(ODD_NAMES).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        records[at] = (choose.choice((odd, f"archive/{odd}"))[:60_000], data)
    elif what == 3:
        packed = choose.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif what == 4:
        records[at] = (name, choose.choice(records)[1])
    else:
        records[at] = (name, choose.choice(BLIND)(data, choose) if data else b"\x00")
    return _zip(records, packed)


def odd_pickle(content: bytes, choose: random.Random) -> bytes:
    """The pickle of a .pt is hostile, or its texts and numbers are odd."""
    return _with_record(content, choose, "data.pkl", pickle_edit)


def odd_header(content: bytes, choose: random.Random) -> bytes:
    """The header of an array in an .npz is odd."""
    return _with_record(content, choose, ".npy", npy_edit)


def odd_document(content: bytes, choose: random.Random) -> bytes:
    """The graph of a .pt2, the list of its weights, or what else is JSON in it."""
    return _with_record(content, choose, ".json", choose.choice(JSON))


def lying_list(content: bytes, choose: random.Random) -> bytes:
    """The list at the end of an archive says other sizes, places or methods than its records."""
    changed = bytearray(content)
    at = -1
    for _ in range(choose.randrange(1, 6)):
        at = max(changed.find(b"PK\x01\x02", at + 1), 0)
    if at == 0:
        return content
    offset, form = choose.choice(((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (42, "<I")))
    value = choose.choice((0, 1, 8, 9, 100, 2**16 - 1, 2**31, 2**32 - 1)) & (256 ** struct.calcsize(form) - 1)
    struct.pack_into(form, changed, at + offset, value)
    return bytes(changed)


def packed_zeros(content: bytes, choose: random.Random) -> bytes:
    """An array of a gigabyte of zeros that takes a megabyte."""
    kind, n_bytes = choose.choice((("|u1", 1), ("<f4", 4), ("<f8", 8), ("|b1", 1), ("|i1", 1)))
    n_rows = choose.choice((2**26, 2**28, 2**30)) // n_bytes // 4
    head = _npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({n_rows}, 4), }}")
    records = [("y.npy", _npy_of_zeros(n_rows)), ("x.npy", head)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)
    return _grown(buffer.getvalue(), "x.npy", head, n_rows * 4 * n_bytes)


def _npy_of_zeros(n_rows: int) -> bytes:
    return _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n_rows},), }}") + bytes(n_rows)


def _grown(content: bytes, name: str, head: bytes, n_zeros: int) -> bytes:
    """The archive with `n_zeros` zeros behind the header `head` of its last record; its checksum is left wrong."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo(name)
        others = [(other.filename, archive.read(other)) for other in archive.infolist() if other is not info]
    packed = _deflated_zeros(head, n_zeros)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for other, data in others:
            archive.writestr(other, data)
        archive.writestr(zipfile.ZipInfo(name), packed)  # stored; the list then says that it is deflated
    changed = bytearray(buffer.getvalue())
    for signature, method, sizes in ((b"PK\x03\x04", 8, 18), (b"PK\x01\x02", 10, 20)):
        at = changed.rfind(signature)
        struct.pack_into("<H", changed, at + method, 8)
        struct.pack_into("<II", changed, at + sizes, len(packed), (len(head) + n_zeros) & 0xFFFFFFFF)
    return bytes(changed)


@functools.lru_cache(maxsize=4)
def _deflated_zeros(head: bytes, n_zeros: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [packer.compress(head)]
    block = bytes(2**24)
    for start in range(0, n_zeros, len(block)):
        parts.append(packer.compress(block[: n_zeros - start]))
    return b"".join([*parts, packer.flush()])


def pickle_edit(data: bytes, choose: random.Random) -> bytes:
    """A pickle whose texts, numbers or whole content are odd."""
    what = choose.randrange(4)
    if what == 0:
        return choose.choice(_HOSTILE_PICKLES)
    wanted: tuple[str, ...] = ("BINUNICODE",) if what < 3 else ("BININT", "BININT1", "BININT2")
    try:
        found = [(op.name, argument, at) for op, argument, at in pickletools.genops(data) if op.name in wanted]
    except ValueError:
        found = []
    if not found:
        return choose.choice(BLIND)(data, choose)
    name, argument, at = choose.choice(found)
    if name == "BINUNICODE":
        old = len(argument.encode("utf-8", "surrogatepass"))
        new = choose.choice(ODD_NAMES).encode("utf-8", "surrogatepass")
        return data[: at + 1] + struct.pack("<I", len(new)) + new + data[at + 5 + old :]
    size = {"BININT": 4, "BININT1": 1, "BININT2": 2}[name]
    new = choose.choice(
        (
            b"\x8b" + struct.pack("<i", 500) + b"\x7f" * 500,  # a whole number of 1,200 digits
            b"J\xff\xff\xff\x7f",
            b"J\xff\xff\xff\xff",
            b"K\x00",
            b"N",
            b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
            b"G\x7f\xf0\x00\x00\x00\x00\x00\x00",
            b"]",
            b"\x88",
        )
    )
    return data[:at] + new + data[at + 1 + size :]


_HEADERS = (
    "", "{", "[", "(" * 5000, "{'descr': '<f4'}", "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }", "{'descr': '<f4', 'fortran_order': 1, 'shape': 4}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 4400 + ",), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4000 + "), }",
    "{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (100,), }",
    "{'descr': [('a', [('b', '<f4')], (2,))], 'fortran_order': False, 'shape': (100,), }",
    "{'descr': '<U1000000', 'fortran_order': False, 'shape': (100, 4), }", "{'descr': '<c16', 'fortran_order': 0}",
    "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (100, 4), }", "{'descr': 5, 'fortran_order': False}",
    "{'descr': 'float32,float32', 'fortran_order': False, 'shape': (100, 4), }", "{1: 2, 'a': 3, (): 4}", "None",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (100, 4), 'x': 1}", "1" + "+1" * 3000, "'" * 101, "\x00" * 50,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1e400, 4), }", "{'descr': '<f4', 'shape': (100L, 4L)}", "\\",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4), }", "{'descr': '\x1b[2J', 'fortran_order': 0}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (100, 0), }", "__import__('os').system('touch marker')",
    "{'descr': '<f3', 'fortran_order': False, 'shape': (100, 4), }", "{'descr': '', 'fortran_order': False}",
)  # fmt: skip


def npy_edit(data: bytes, choose: random.Random) -> bytes:
    """An array whose header is odd."""
    if choose.random() < 0.3:
        return choose.choice(BLIND)(data[:128], choose) + data[128:]
    (n_header,) = struct.unpack("<H", data[8:10])
    version = choose.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x00", b"\xff\xff"))
    return _npy(choose.choice(_HEADERS), version) + data[10 + n_header :]


def _npy(header: str, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1", "replace")
    text += b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text)) + text


def _with_record(content: bytes, choose: random.Random, ending: str, edit: Edit) -> bytes:
    records = _records(content)
    found = [at for at, (name, _) in enumerate(records) if name.endswith(ending)]
    if not found:
        return content
    at = choose.choice(found)
    records[at] = (records[at][0], edit(records[at][1], choose))
    return _zip(records)


def _records(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _zip(records: Sequence[tuple[str, bytes]], packed: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # a name that comes twice is what is wanted
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data, packed)
    return buffer.getvalue()


def _blind_then(edit: Callable[[bytes, random.Random], bytes]) -> Edit:
    return lambda content, choose: choose.choice(BLIND)(edit(content, choose), choose)


ARCHIVE: Sequence[Edit] = (odd_record, odd_record, lying_list)
PT: Sequence[Edit] = (*ARCHIVE, odd_pickle, odd_pickle, odd_pickle, odd_pickle)
PT2: Sequence[Edit] = (*ARCHIVE, *[odd_document] * 9)
NPZ: Sequence[Edit] = (*ARCHIVE, *[odd_header] * 5, packed_zeros)
