"""Foreign text in one line, whatever it is made of."""

from __future__ import annotations

import pytest

from edgeprune.lines import MAX_LINE, error_line, one_line, printable, shown


class Silent(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("a\x00b\x7f\x9bc", "a\\x00b\\x7f\\x9bc"),
        ("half \ud83d", "half \\ud83d"),
        ("\u200bnothing\ufeff\U000e0041", "\\u200bnothing\\ufeff\\U000e0041"),
        ("größe 日本語 👩\u200d💻\n\tkept", "größe 日本語 👩\u200d💻\n\tkept"),
    ],
)
def test_control_characters_are_escaped_and_letters_kept(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(expected) == expected
    expected.encode()


@pytest.mark.parametrize("length", [299, 300, 301, 38_000, 10_000_000])
def test_a_long_text_is_cut_in_its_middle(length: int) -> None:
    text = "what, where" + "x" * (length - 14) + "got"
    line = one_line(text)
    assert len(line) <= MAX_LINE and line.startswith("what, where") and line.endswith("got")
    assert (line == text) == (length <= MAX_LINE)


def test_lines_become_one() -> None:
    assert one_line("a\nb\r\n\u2028 c\x1b\n") == "a b c\\x1b"


def test_an_error_is_told_even_where_it_cannot_say_what_it_is() -> None:
    assert error_line(KeyError("lost")) == "KeyError: 'lost'"
    assert error_line(ValueError("\n\nfirst\nsecond")) == "ValueError: first"
    assert error_line(Silent()) == "Silent: (its message cannot be read)"
    assert len(error_line(ValueError("x" * 10**6))) == 200


def test_a_value_is_shown_briefly_whatever_it_holds() -> None:
    doubled: list[object] = []
    for _ in range(60):  # 2 to the 60th lists, were it written out
        doubled = [doubled, doubled]

    class Loud:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(doubled) == "[[[...], [...]], [[...], [...]]]"
    assert shown(10**9000) == "a number of 29898 bits"
    assert shown(Loud()) == "a Loud"
    assert shown({"a\x1b": 1.5, "b": None}) == "{'a\\x1b': 1.5, 'b': None}"
    assert len(shown("x" * 10**6)) <= 60
