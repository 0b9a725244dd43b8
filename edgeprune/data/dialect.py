"""How a table is written: its encoding, what stands between its columns, its decimal mark, whether it has a header."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError

HEAD_BYTES = 2**22  # of a file that are looked at
OPTIONS = ("sep", "decimal", "encoding", "header")
_SEPARATORS = (",", ";", "\t", "|")
_SAID = {"tab": "\t", "\\t": "\t"}
_LINES = 100
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f]")
_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
_NUMBER = re.compile(r"[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?")
_EXCEL = re.compile(r"sep=(.)")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What pandas needs to be told of a file; `first` is its first row, `notes` what the user is told."""

    sep: str
    decimal: str
    encoding: str
    header: bool
    skip: int
    first: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Those of `pandas.read_csv`."""
        return {
            "sep": self.sep,
            "decimal": self.decimal,
            "encoding": self.encoding,
            "header": 0 if self.header else None,
            "skiprows": self.skip,
        }

    def __str__(self) -> str:
        """E.g. "';' between columns, 3 of them"."""
        return f"{_shown(self.sep)} between columns, {len(self.first)} of them"


def detect(head: bytes, path: Path, target: str | None, asked: Mapping[str, str]) -> Dialect:
    """The dialect of a table by its first bytes; a comma and a point where nothing speaks against it.

    The separator is the one under which the first row has the target's name, else the one that cuts all rows alike.

    Args:
        head: the first HEAD_BYTES.
        path: for messages.
        target: the name of the target's column.
        asked: what the user says: `sep` (a character or `tab`), `decimal` (`.` or `,`), `encoding`, `header` (`none`).

    Raises:
        InputError: an option that is none of these, or bytes that are no text in the encoding asked for.
    """
    _check_asked(path, asked)
    encoding, notes = _encoding(head, path, asked.get("encoding"))
    lines = _lines(head, encoding)
    excel = _EXCEL.fullmatch(lines[0].strip()) if lines else None
    lines = [line for line in lines[int(excel is not None) :] if line.strip()]
    found = excel[1] if excel else _separator(lines, target)
    sep = asked.get("sep", found)
    sep = _SAID.get(sep, sep)
    rows = _rows(lines, sep)
    header = asked.get("header") != "none"
    decimal = asked.get("decimal") or _decimal(rows[int(header) :])
    dialect = Dialect(sep, decimal, encoding, header, int(excel is not None), tuple(rows[0]) if rows else ())
    return replace(dialect, notes=(*notes, *_notes(dialect, path, asked)))


def _lines(head: bytes, encoding: str) -> list[str]:
    """The first whole lines."""
    lines = head.decode(encoding, "replace").splitlines()[:_LINES]
    return lines[:-1] if len(lines) == _LINES or len(head) == HEAD_BYTES else lines


def _notes(dialect: Dialect, path: Path, asked: Mapping[str, str]) -> Iterator[str]:
    if dialect.decimal == "," and "decimal" not in asked:
        yield f"{path.name} has a comma as decimal mark"
    if dialect.sep != "," and "sep" not in asked:
        yield f"{path.name} has {_shown(dialect.sep)} between columns"
    if not dialect.header:
        return
    twice = sorted(name for name, count in Counter(dialect.first).items() if count > 1)
    if twice:
        yield f"columns of {path.name} that are called the same are numbered: {', '.join(twice[:3])}"
    if "" in dialect.first:
        yield f"a column of {path.name} that has no name is taken as a feature: a number of the row, say, is none"


def no_target(dialect: Dialect, path: Path, columns: Sequence[str], target: str | None, listed: str) -> InputError:
    """What to say where the target is none of the columns: what was found, and what it may be."""
    got = "no target" if target is None else repr(target[:60])
    text = f"{path}: expected ?target=COLUMN with one of {listed}; got {got}"
    if dialect.header and dialect.first and all(_NUMBER.fullmatch(name.strip()) for name in dialect.first):
        return InputError(f"{text}; the first line holds numbers: with &header=none its columns are called 0, 1, ...")
    if len(columns) == 1:
        return InputError(f"{text}; found {dialect}: &sep=CHARACTER says another")
    several = [name.strip() for name in (target or "").split(",")]
    if len(several) > 1 and set(several) <= {name.strip() for name in columns}:
        return InputError(f"{text}; several targets go as y (n, {len(several)}) beside x in an .npz file, npz:FILE")
    alike = {name.strip().lower(): name for name in columns}.get((target or "").strip().lower())
    return InputError(f"{text}; did you mean {alike!r}?" if alike else text)


def _check_asked(path: Path, asked: Mapping[str, str]) -> None:
    sep = asked.get("sep", ",")
    if len(_SAID.get(sep, sep)) != 1 or sep in '"\n\r':
        raise InputError(f"{path}: expected ?sep= of one character or tab, got {sep[:20]!r}")
    if asked.get("decimal", ".") not in (".", ","):
        raise InputError(f"{path}: expected ?decimal= as . or , got {asked['decimal'][:20]!r}")
    if asked.get("header", "none") != "none":
        raise InputError(f"{path}: expected ?header=none, or no such option, got {asked['header'][:20]!r}")


def _encoding(head: bytes, path: Path, asked: str | None) -> tuple[str, list[str]]:
    if asked is not None:
        try:
            b"a".decode(asked)
        except LookupError:
            raise InputError(f"{path}: expected ?encoding= of a text, e.g. cp1252, got {asked[:40]!r}") from None
        return asked, []
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name, []
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        if not _NO_TEXT.search(head.decode("cp1252", "replace")):
            return "cp1252", [f"{path.name} is read as Windows-1252 (?encoding= says another)"]
    return "utf-8", []


def _separator(lines: Sequence[str], target: str | None) -> str:
    rows = {sep: _rows(lines, sep) for sep in _SEPARATORS}
    several = {sep: cut for sep, cut in rows.items() if cut and len(cut[0]) > 1}
    named = [sep for sep, cut in several.items() if target in cut[0]]
    even = [sep for sep, cut in several.items() if len(set(map(len, cut))) == 1]
    return next(iter(named or even), ",")


def _rows(lines: Sequence[str], sep: str) -> list[list[str]]:
    """The lines cut into fields; none where they are no table, which pandas then says."""
    try:
        return list(csv.reader(lines, delimiter=sep, skipinitialspace=True))
    except csv.Error:
        return []


def _decimal(rows: Sequence[Sequence[str]]) -> str:
    fields = [field.strip() for row in rows for field in row]
    has_comma = any(_COMMA.fullmatch(field) for field in fields)
    return "," if has_comma and not any(_POINT.fullmatch(field) for field in fields) else "."


def _shown(sep: str) -> str:
    return "a tab" if sep == "\t" else repr(sep)
