"""Pieces of C99: numbers that read back as they are, arrays, and texts of any kind as literals of ASCII."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from edgeprune.errors import InputError

_MAX_LITERAL = 4095  # characters that a C99 compiler has to take
_PER_LINE = 8
MADE = "/* Made by edgeprune"  # what our files begin with


def is_ours(path: Path) -> bool:
    """Whether there is a file of C that edgeprune wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MADE)) == MADE.encode("ascii")


def number(value: float, kind: str) -> str:
    """A literal that reads back as the same number, e.g. `0.1307f`; raises InputError for one out of range."""
    with np.errstate(over="ignore"):
        held = np.dtype(kind).type(value)
    if not np.isfinite(held):
        raise InputError(f"--c-header: expected numbers within the range of {kind}, got {value:.6g}")
    text = f"{float(held):.9g}" if kind == "float32" else f"{float(held):.17g}"
    text = text if any(mark in text for mark in ".e") else f"{text}.0"
    return text + ("f" if kind == "float32" else "")


def array(declared: str, values: Iterable[str], says: str = "") -> str:
    """A constant, e.g. of `uint32_t edgeprune_index`, with a comment that says what it is."""
    values = list(values)
    lines = [", ".join(values[start : start + _PER_LINE]) for start in range(0, len(values), _PER_LINE)]
    body = ",\n    ".join(lines)
    note = f"/* {says} */\n" if says else ""
    return f"{note}static const {declared}[{len(values)}] = {{\n    {body}\n}};"


def strings(name: str, texts: Sequence[str]) -> str:
    """C has no empty arrays: nothing is declared for nothing."""
    if not texts:
        return ""
    body = ",\n    ".join(map(literal, texts))
    return f"static const char *const {name}[{len(texts)}] = {{\n    {body}\n}};"


def literal(text: str, asked: str = "--c-header") -> str:
    """A string literal of printable ASCII: other bytes in octal, which ends after three digits, and no trigraphs."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > _MAX_LITERAL:
        raise InputError(f"{asked}: expected names of at most {_MAX_LITERAL} bytes, got {text[:40]!r}...")
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in data) + '"'
