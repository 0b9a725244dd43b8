"""Edits that know nothing of a file's format, and odd values for those that do."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

Edit = Callable[[bytes, random.Random], bytes]
MARKER = "marker"  # a file that appears where a mutant's code has run
ODD_NAMES = (
    "", "\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\u202eevil", "a\nb", "\r", "../../up", "/etc/passwd", "__class__",
    "x" * 300, "x" * 40_000, "größe", "слой", "a b", "'\"\\", "{x}", "<b>", "%s%n", "\x9b2J", ".", "..", "\ud800",
    "import os", "nan", "NUL", "\u2028", "0", "-1",
)  # fmt: skip
_SIZES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def flip(content: bytes, choose: random.Random) -> bytes:
    """Some bits turned over."""
    changed = bytearray(content)
    for _ in range(choose.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def flip_head(content: bytes, choose: random.Random) -> bytes:
    """Bits turned over where formats keep their sizes."""
    return flip(content[:128], choose) + content[128:]


def flip_tail(content: bytes, choose: random.Random) -> bytes:
    """Bits turned over where archives keep their lists."""
    return content[:-256] + flip(content[-256:], choose)


def truncate(content: bytes, choose: random.Random) -> bytes:
    """The beginning alone."""
    return content[: choose.randrange(len(content) + 1)]


def lengthen(content: bytes, choose: random.Random) -> bytes:
    """More at the end than the format says."""
    return content + choose.choice((b"\x00", b"PK\x03\x04", content[:100], b"\xff" * 4096, content))


def cut_out(content: bytes, choose: random.Random) -> bytes:
    """A piece is missing."""
    start = choose.randrange(len(content) + 1)
    return content[:start] + content[start + choose.choice((1, 4, 100, 4096)) :]


def splice(content: bytes, choose: random.Random) -> bytes:
    """A piece stands where another should."""
    a, b = choose.randrange(len(content) + 1), choose.randrange(len(content) + 1)
    n = choose.choice((4, 64, 1024))
    return content[:a] + content[b : b + n] + content[a + n :]


def blank(content: bytes, choose: random.Random) -> bytes:
    """A piece of zeros, or of ones."""
    start, n = choose.randrange(len(content) + 1), choose.choice((2, 8, 512))
    return content[:start] + choose.choice((b"\x00", b"\xff")) * n + content[start + n :]


def lie(content: bytes, choose: random.Random) -> bytes:
    """A number of two, four or eight bytes that a size may be is another one."""
    form = choose.choice(("<H", "<I", "<Q", ">H", ">I"))
    n = struct.calcsize(form)
    if len(content) <= n:
        return content
    start = choose.choice((choose.randrange(min(64, len(content) - n)), choose.randrange(len(content) - n)))
    value = choose.choice(_SIZES) & (256**n - 1)
    return content[:start] + struct.pack(form, value) + content[start + n :]


BLIND: Sequence[Edit] = (flip, flip_head, flip_tail, truncate, lengthen, cut_out, splice, blank, lie)
