"""Budgets as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import InputError
from edgeprune.units import (
    LatencyLimit,
    check_normalization,
    parse_latency,
    parse_normalization,
    parse_size,
    size_as_asked,
    size_text,
    split_normalization,
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("5ms", LatencyLimit(ms=5.0)),
        ("0.5x", LatencyLimit(ratio=0.5)),
        ("800us", LatencyLimit(ms=0.8)),
        ("0.02 s", LatencyLimit(ms=20.0)),
        (".25x", LatencyLimit(ratio=0.25)),
        ("1x", LatencyLimit(ratio=1.0)),
    ],
)
def test_latencies(text: str, limit: LatencyLimit) -> None:
    found = parse_latency(text)
    assert (found.ratio, found.ms) == (limit.ratio, pytest.approx(limit.ms))
    assert parse_latency(str(found)) == found


@pytest.mark.parametrize(
    "text", ["5mss", "5", "0ms", "-1ms", "2x", "x", "nanms", "1e9ms", "infx", "", "0.5 times", "5MS"]
)
def test_typos_in_latencies_are_told(text: str) -> None:
    with pytest.raises(InputError, match="--max-latency: expected .*got"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("500kB", 500_000), ("500KB", 500_000), ("1.5MB", 1_500_000), ("300KiB", 307_200), ("12B", 12), ("2 GiB", 2**31)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["500", "500kb", "0kB", "0.1B", "kB", "5kBs", "-5kB", "5 k B"])
def test_typos_in_sizes_are_told(text: str) -> None:
    with pytest.raises(InputError, match="--max-size: expected .*got"):
        parse_size(text)


@given(st.text(max_size=12))
def test_no_text_does_anything_else(text: str) -> None:
    for parse in (parse_latency, parse_size):
        try:
            assert parse(text)
        except InputError:
            pass


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (12, 1500, 2_340_000, 5e9)] == ["12 B", "1.5 kB", "2.34 MB", "5 GB"]


def test_scalings() -> None:
    assert [parse_normalization(word) for word in ("none", "data", "weights")] == [None, None, None]
    assert parse_normalization("mean=0;std=0.5") == ((0.0,), (0.5,))
    assert parse_normalization("mean=1,-2,3e1; std=1,2,3") == ((1.0, -2.0, 30.0), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    "text", ["", "mean=1", "std=1;mean=1", "mean=1;std=0", "mean=nan;std=1", "mean=1;std=inf", "mean=1,;std=1", "Data"]
)
def test_typos_in_scalings_are_told(text: str) -> None:
    with pytest.raises(InputError, match="--normalize: expected none, data, weights or numbers"):
        parse_normalization(text)


def test_scalings_of_inputs_by_name() -> None:
    assert split_normalization("none") == split_normalization("mean=1, 2;std=3, 4") == {}
    text = "image:mean=0.1, 0.2;std=1,2 table:data age:none"
    assert split_normalization(text) == {"image": "mean=0.1, 0.2;std=1,2", "table": "data", "age": "none"}
    check_normalization(text)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("image:mean=1", "--normalize image: expected none, data, weights or numbers"),
        ("image:", "--normalize image: expected none, data, weights or numbers"),
        ("image:data image:none", "--normalize: expected input image once, got it twice"),
        ("none image:data", "--normalize: expected NAME:HOW for each input, got 'none image:data'"),
        ("image:data none", "--normalize image: expected none, data, weights or numbers"),
        ("a b:c:d", "--normalize: expected NAME:HOW for each input"),
    ],
)
def test_typos_in_scalings_by_name_are_told(text: str, fragment: str) -> None:
    with pytest.raises(InputError, match=re.escape(fragment)):
        check_normalization(text)


@pytest.mark.parametrize("text", ["13kB", "1.5MB", "128KiB", "2MiB", "1GB", "150B", "1234567B", "300kB"])
def test_a_size_is_told_as_it_was_asked_for(text: str) -> None:
    told = size_as_asked(parse_size(text))
    assert parse_size(told) == parse_size(text)
    assert told == text or len(told) < len(text)
