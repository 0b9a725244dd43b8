"""Edits of images and IDX files: sizes that lie, other formats under the same name, streams that grow."""

from __future__ import annotations

import functools
import gzip
import random
import struct
import zlib
from collections.abc import Sequence

from mutants.edits import BLIND, Edit

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(marker) (w) file closefile\nshowpage\n%%EOF\n"
_SIDES = (0, 1, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1, 7071)


def lying_png(content: bytes, choose: random.Random) -> bytes:
    """A PNG that claims another size or type, its checksum right."""
    header = struct.pack(
        ">IIBBBBB",
        choose.choice(_SIDES),
        choose.choice(_SIDES),
        choose.choice((1, 8, 16, 3)),
        choose.choice((0, 2, 3, 6, 9)),
        0,
        0,
        choose.choice((0, 1)),
    )
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def swollen_png(content: bytes, choose: random.Random) -> bytes:
    """Many pixels, or much text, in few bytes."""
    side = choose.choice((3000, 7000, 12_000))
    head = struct.pack(">IIBBBBB", side, side, 8, choose.choice((2, 6)), 0, 0, 0)
    data = _zeros(2**28)
    text = zlib.compress(bytes(2**24))
    parts = ((b"IHDR", head), (b"zTXt", b"a\x00\x00" + text), (b"iCCP", b"a\x00\x00" + text), (b"IDAT", data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in (*parts, (b"IEND", b"")))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def other_format(content: bytes, choose: random.Random) -> bytes:
    """What other readers than that of images would take."""
    return choose.choice(
        (
            _EPS,
            b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(_EPS)) + bytes(18) + _EPS,
            b"%PDF-1.4\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"P6\n99999 99999\n255\n",
            b"P5 4 4 65536 " + bytes(64),
            b"P3\n2 2\n" + b"9" * 100_000,
            b"DDS |" + bytes(200),
            b"8BPS\x00\x01" + bytes(200),
            b"SIMPLE  =" + b" " * 71,
            b"\x01\xda\x01\x01" + bytes(520),
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
            b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 65535) + b"\xff" * 64,
            b"II*\x00\x08\x00\x00\x00\x00\x00" + struct.pack("<I", 8),
            b"RIFF" + struct.pack("<I", 2**31) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\xff" * 10,
        )
    )


IMAGES: Sequence[Edit] = (lying_png, lying_png, swollen_png, other_format, other_format, other_format)


def lying_idx(content: bytes, choose: random.Random) -> bytes:
    """An IDX file that claims other sizes."""
    sizes = [choose.choice((0, 1, 28, 2**16, 2**31, 2**32 - 1)) for _ in range(3)]
    return bytes([0, 0, choose.choice((8, 8, 8, 0x0D)), choose.choice((3, 3, 1, 255))]) + struct.pack(
        ">III", *sizes
    ) + content[16:]  # fmt: skip


def swollen_idx(content: bytes, choose: random.Random) -> bytes:
    """A gzip stream of an IDX file of gigabytes, whose header is true."""
    n = choose.choice((2**16, 2**20, 2**21))
    return _swollen(n)


@functools.lru_cache(maxsize=4)
def _swollen(n: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes([0, 0, 8, 3]) + struct.pack(">III", n, 32, 32))]
    block = bytes(2**24)
    parts += [packer.compress(block[: n * 1024 - start]) for start in range(0, n * 1024, len(block))]
    return b"".join([*parts, packer.flush()])


@functools.lru_cache(maxsize=4)
def _zeros(n: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(2**24)
    return b"".join([*(packer.compress(block) for _ in range(n // len(block))), packer.flush()])


def packed(edit: Edit) -> Edit:
    """The edit, then gzip around it."""
    return lambda content, choose: gzip.compress(edit(gzip.decompress(content), choose), 1, mtime=0)


IDX: Sequence[Edit] = (lying_idx,)
IDX_GZ: Sequence[Edit] = (packed(lying_idx), *(packed(edit) for edit in BLIND[:3]), swollen_idx)
