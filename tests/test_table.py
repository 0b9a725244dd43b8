"""Tables as people and programs write them: separators, decimal marks, encodings, headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprune.data import batches, open_data
from edgeprune.errors import InputError
from edgeprune.records import DataSource

pytest.importorskip("pandas")
HEADER = ("width", "Höhe", "kind")
ROWS = [(i / 8 + 0.5, -i, ("ash", "elm")[i % 2]) for i in range(40)]


def text(sep: str = ",", decimal: str = ".", header: bool = True, end: str = "\n", quote: str = "") -> str:
    rows = [HEADER, *ROWS] if header else ROWS
    cells = [[f"{quote}{value}{quote}".replace(".", decimal) for value in row] for row in rows]
    return end.join(sep.join(row) for row in cells) + end


def opened(folder: Path, content: str | bytes, query: str = "target=kind") -> DataSource:
    (folder / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return open_data(f"csv:{folder / 't.csv'}?{query}")


def is_whole(data: DataSource) -> bool:
    parts = [next(iter(batches(split, 100))) for split in (data.train, data.val, data.test)]
    got = sorted((*x.tolist(), data.classes[y]) for xs, ys in parts for x, y in zip(xs, ys, strict=True))
    return got == sorted(ROWS)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (text(), []),
        (text(";"), ["t.csv has ';' between columns"]),
        (text("\t"), ["t.csv has a tab between columns"]),
        (text("|"), ["t.csv has '|' between columns"]),
        (text("; "), ["t.csv has ';' between columns"]),
        (text(";", ","), ["t.csv has a comma as decimal mark", "t.csv has ';' between columns"]),
        (text(",", ",", quote='"'), ["t.csv has a comma as decimal mark"]),
        (text(end="\r\n", quote='"'), []),
        ("sep=;\n" + text(";"), ["t.csv has ';' between columns"]),
        (b"\xef\xbb\xbf" + text().encode(), []),
        (text().encode("utf-16"), []),
        (text().encode("cp1252"), ["t.csv is read as Windows-1252 (?encoding= says another)"]),
    ],
)
def test_how_a_table_is_written_is_found_out(tmp_path: Path, content: str | bytes, told: list[str]) -> None:
    data = opened(tmp_path, content)
    assert data.feature_names == HEADER[:2] and is_whole(data)
    assert list(data.notes) == told


@pytest.mark.parametrize(
    ("content", "query"),
    [
        (text(";", ","), "target=kind&sep=;&decimal=,"),
        (text("\t"), "sep=tab&target=kind"),
        (text("#"), "target=kind&sep=%23"),
        (text().encode("latin-1"), "target=kind&encoding=latin-1"),
    ],
)
def test_what_is_said_of_a_table_is_taken(tmp_path: Path, content: str | bytes, query: str) -> None:
    data = opened(tmp_path, content, query)
    assert is_whole(data) and data.feature_names == HEADER[:2] and data.notes == ()


def test_a_table_without_a_header_has_numbers_for_names(tmp_path: Path) -> None:
    data = opened(tmp_path, text(header=False), "target=2&header=none")
    assert data.feature_names == ("0", "1") and is_whole(data)
    numbers = "".join(f"{i},{i / 2},{i % 3}\n" for i in range(40))
    with pytest.raises(
        InputError, match="; the first line holds numbers: with &header=none its columns are called 0, 1"
    ):
        opened(tmp_path, numbers, "target=y")


def test_points_and_commas_together_are_no_decimal_commas(tmp_path: Path) -> None:
    rows = "".join(f"{i}.5;1,{i:03d};{'xy'[i % 2]}\n" for i in range(40))
    with pytest.raises(InputError, match=r"got text or dates in b \(e.g. '1,000'\)"):
        opened(tmp_path, f"a;b;kind\n{rows}")


def test_names_that_occur_twice_are_told(tmp_path: Path) -> None:
    data = opened(tmp_path, text().replace("Höhe", "width"))
    assert data.feature_names == ("width", "width.1")
    assert data.notes == ("columns of t.csv that are called the same are numbered: width",)
    with pytest.raises(InputError, match="expected one column 'kind', got 2"):
        opened(tmp_path, text().replace("Höhe", "kind"))


def test_a_column_without_a_name_is_told(tmp_path: Path) -> None:
    data = opened(tmp_path, ",a,kind\n" + "".join(f"{i},{i / 2},{'xy'[i % 2]}\n" for i in range(40)))
    assert data.feature_names == ("Unnamed: 0", "a")
    assert data.notes == (
        "a column of t.csv that has no name is taken as a feature: a number of the row, say, is none",
    )


@pytest.mark.parametrize(
    ("content", "query", "said"),
    [
        (text(), "target=Kind", "got 'Kind'; did you mean 'kind'?"),
        (text("~"), "target=kind", "found ',' between columns, 1 of them: &sep=CHARACTER says another"),
        (text(), "target=kind&sep=ab", "expected ?sep= of one character or tab, got 'ab'"),
        (text(), "target=kind&decimal=x", "expected ?decimal= as . or , got 'x'"),
        (text(), "target=kind&encoding=rot13", "expected ?encoding= of a text, e.g. cp1252, got 'rot13'"),
        (text(), "target=kind&encoding=klingon", "expected ?encoding= of a text"),
        (text(), "target=kind&header=2", "expected ?header=none"),
        (text().encode("cp1252"), "target=kind&encoding=utf-8", "cannot be read as a CSV file (',' between columns, 3"),
    ],
)
def test_what_cannot_be_used_says_what_was_found(tmp_path: Path, content: str | bytes, query: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        opened(tmp_path, content, query)
    assert said in str(caught.value)


def test_the_first_class_file_is_read_as_before(tmp_path: Path) -> None:
    """A text column with commas in quotes, and a target that no other separator would find."""
    rows = "".join(f'{i},"{"a;b" if i % 2 else "c;d"}"\n' for i in range(40))
    data = opened(tmp_path, f"x,kind\n{rows}")
    assert data.classes == ("a;b", "c;d") and data.notes == ()
    assert np.concatenate([x.numpy() for x, _ in batches(data.train, 99)]).shape == (24, 1)
