"""What is read from outside: regular files within their limit, JSON within its bounds."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune import reading
from edgeprune.errors import InputError
from edgeprune.reading import open_file, parse_json, read_file, read_json


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda path: None, "nothing there"),
        (os.mkfifo, "a pipe"),
        (os.mkdir, "a folder"),
        (_socket, "a socket"),
        (Path.touch, "an empty file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: path.symlink_to(path), "a ring of links"),
        (lambda path: path.symlink_to("none"), "nothing there"),
    ],
)
def test_only_regular_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any], got: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.json"
    make(path)
    with pytest.raises(InputError) as refused:
        read_file(path, "plan")
    assert str(refused.value) == f"{path}: expected a plan.json, got {got}"


def test_a_name_that_is_no_path() -> None:
    with pytest.raises(InputError, match="expected an image, got a name that is no path"):
        open_file("a\x00b", "image")


def test_a_file_larger_than_its_kind_may_be_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    with path.open("wb") as file:
        file.truncate(2**34)  # a hole: it takes no place on the disk
    with pytest.raises(InputError, match=r"a device\.json of at most 16,777,216 bytes, got 17,179,869,184"):
        read_file(path, "device")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"12345")
    kept, calls = os.fstat, []

    def growing(descriptor: int) -> os.stat_result:
        state = kept(descriptor)
        calls.append(state.st_size)
        if len(calls) == 2:  # once the size is known that is to be read
            os.truncate(path, 100)
        return kept(descriptor) if len(calls) == 2 else state

    monkeypatch.setattr(os, "fstat", growing)
    monkeypatch.setitem(reading.LIMITS, "model", replace(reading.LIMITS["model"], max_bytes=6))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at most 6 bytes, got more"):
        read_file(path, "model")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("[" * 200_000, "more than 64 levels"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "more than 64 levels"),
        ("9" * 5000, "a whole number of 5000 digits"),
        ("1e400", "the number 1e400"),
        ("[NaN]", "the number NaN"),
        ("-Infinity", "the number -Infinity"),
        ("0." + "1" * 5000, "the number 0.111"),
        ("{", "no JSON"),
        ("", "no JSON"),
        (b"\xff\xfe", "no UTF-8 text"),
    ],
)
def test_json_is_bounded(text: str | bytes, got: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_json(text, "x.json: expected a plan")
    assert str(refused.value).startswith("x.json: expected a plan, got ")
    assert got in str(refused.value) and len(str(refused.value)) < 200


NAMES = {
    "model": "model:", "training": "`OUT.training`", "results": "`OUT.compressing`", "onnx": "ONNX",
    "npz": "`.npz`", "idx": "IDX", "csv": "CSV",
    "image": "image", "plan": "`plan.json`", "run": "`run.json`", "device": "`device.json`", "groups": "feature groups",
    "parquet": "Parquet, Arrow", "shard": "tar shard", "sound": "sound", "hf": "JSON of a data set",
    "weights": "a file of class weights", "code": "Python file",
    "ids": "a file of ids", "features": "`features.json`", "prices": "feature prices", "recipe": "recipe file",
}  # fmt: skip


def test_the_limits_are_those_that_are_written_down() -> None:
    page = (Path(__file__).parent.parent / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in page.splitlines() if line.startswith("| ")]
    assert set(NAMES) == set(reading.LIMITS)
    for kind, limit in reading.LIMITS.items():
        [size] = [size for name, size in rows if name.startswith(NAMES[kind])]
        mib = -(-limit.max_bytes // 2**20)
        assert size == (f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"), kind


def test_json_within_its_bounds_is_read(tmp_path: Path) -> None:
    deep: Any = math.pi
    for _ in range(63):
        deep = [deep]
    path = tmp_path / "run.json"
    path.write_text(f'{{"a": {deep}, "b": -9223372036854775808, "c": "\\u0000"}}')
    assert read_json(path, "run") == {"a": deep, "b": -(2**63), "c": "\x00"}
