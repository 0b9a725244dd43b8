"""Edits of JSON documents and CSV tables: a value that is odd, missing, doubled, too large or too deep."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from mutants.edits import ODD_NAMES, Edit

_PLACE = "\ue000the odd one\ue001"
_TOKENS = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "9" * 5000, "9" * 400 + ".5", "9" * 40, "-1", "0",
    "1.5", "true", "false", "null", "[]", "{}", "[[]]", "-9223372036854775809", "1e-400", '""', '"1"', "[" * 200_000,
    '{"a":' * 100_000, "[" * 900 + "]" * 900, "[0," * 100 + "0" + "]" * 100, '{"a":1,"a":2}', "01", "'x'", "\ufeff1",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document; of long lists the first and last ones."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for index in [*range(min(4, len(value))), *range(max(4, len(value) - 2), len(value))]:
            found += places(value[index], (*path, index))
    return found


def odd_value(text: bytes, choose: random.Random) -> bytes:
    """Some values of a document are odd."""
    document = json.loads(text)
    tokens = []
    for _ in range(choose.choice((1, 1, 1, 3))):
        path = choose.choice(places(document))
        tokens.append(choose.choice((choose.choice(_TOKENS), json.dumps(choose.choice(ODD_NAMES)))))
        document = _with(document, path, _PLACE)
    changed = json.dumps(document)
    for token in tokens:
        changed = changed.replace(json.dumps(_PLACE), token, 1)
    return changed.encode("utf-8", "surrogatepass")


def odd_key(text: bytes, choose: random.Random) -> bytes:
    """An object lacks a key, has one more, or one of another name."""
    document = json.loads(text)
    owners = [path for path in places(document) if isinstance(_at(document, path), dict) and _at(document, path)]
    if not owners:
        return text
    owner = _at(document, choose.choice(owners))
    key = choose.choice(list(owner))
    what = choose.randrange(3)
    value = owner.pop(key) if what != 1 else owner[key]
    if what:
        owner[choose.choice(ODD_NAMES)] = value
    return json.dumps(document).encode()


def moved_value(text: bytes, choose: random.Random) -> bytes:
    """A value stands where another belongs."""
    document = json.loads(text)
    ways = places(document)
    value = json.loads(json.dumps(_at(document, choose.choice(ways))))
    return json.dumps(_with(document, choose.choice(ways), value)).encode()


def _at(document: Any, path: Sequence[Any]) -> Any:
    for step in path:
        document = document[step]
    return document


def _with(document: Any, path: Sequence[Any], value: Any) -> Any:
    if not path:
        return value
    try:
        _at(document, path[:-1])[path[-1]] = value
    except (KeyError, IndexError, TypeError):  # an earlier edit took the place away
        return document
    return document


JSON: Sequence[Edit] = (odd_value, odd_value, odd_value, odd_key, moved_value)


def odd_cell(text: bytes, choose: random.Random) -> bytes:
    """Some cells of a table hold what no number is."""
    lines = text.decode().split("\n")
    for _ in range(choose.choice((1, 1, 4))):
        row = choose.randrange(len(lines))
        cells = lines[row].split(",")
        odd = (*ODD_NAMES, "nan", "inf", "1e400", "9" * 5000, '"', '"a,b', "1;2", "1,2,3", "0x1F", "1_000", "٣", "True")
        cells[choose.randrange(len(cells))] = choose.choice(odd)
        lines[row] = ",".join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def odd_table(text: bytes, choose: random.Random) -> bytes:
    """A table of an odd shape."""
    lines = text.split(b"\n")
    return choose.choice(
        (
            lambda: b"\n".join(lines[:1]),
            lambda: b"\n".join(lines[1:]),
            lambda: b"\n".join(line + b"," for line in lines),
            lambda: b"kind," + b",".join(b"c%d" % i for i in range(100_000)) + b"\n" + b"0," + b"1," * 99_999 + b"1",
            lambda: b"kind,a\n" + b"".join(b"%d,1\n" % i for i in range(120_000)),
            lambda: b",".join([b"kind"] * 50) + b"\n" + b",".join([b"1"] * 50),
            lambda: b"kind,a\n" + b"x" * 20_000_000 + b",1\n",
            lambda: text.replace(b"\n", b"\r"),
            lambda: text.decode().encode("utf-16"),
            lambda: b"\x1f\x8b" + text,
            lambda: b"\n" * 100_000,
            lambda: b'"' + text,
        )
    )()


CSV: Sequence[Edit] = (odd_cell, odd_cell, odd_table)
