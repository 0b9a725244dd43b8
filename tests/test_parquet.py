"""Parquet and Arrow tables: what a CSV file of the same rows gives, in memory or on disk; what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.data import batches, open_data, rows
from edgeprune.data.labels import with_classes_of
from edgeprune.data.rows import RowsSplit
from edgeprune.errors import InputError
from edgeprune.tasks.wanted import WantedTargets
from edgeprune.tasks.weights import class_counts

arrow = pytest.importorskip("pyarrow", reason="in the extra arrow, whose wheel of 55 MB is not in dev")
parquet = pytest.importorskip("pyarrow.parquet")

N_MANY = 1_000_000
MEGABYTES = 400  # for a million targets, batches and a row group of what takes 1.6 GB as numbers


def columns(n: int = 90) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "width": rng.normal(5, 2, n),
        "count": rng.integers(0, 200, n),
        "on": rng.integers(0, 2, n).astype(bool),
        "kind": np.array(["fern", "moss", "äsp"])[rng.integers(0, 3, n)],
    }


def written(path: Path, table: dict[str, Any], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(table), path, **how)
    return path


def refused(spec: str, *said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_data(spec)
    text = str(caught.value)
    assert all(part in text for part in said) and "\n" not in text, text


def same(one, other) -> None:
    assert (one.classes, one.feature_names, one.targets) == (other.classes, other.feature_names, other.targets)
    np.testing.assert_allclose(one.normalization.mean, other.normalization.mean, rtol=1e-9)
    np.testing.assert_allclose(one.normalization.std, other.normalization.std, rtol=1e-9)
    for name in ("train", "val", "test"):
        pair = [list(batches(getattr(data, name), 7, shuffle=True, seed=3)) for data in (one, other)]
        for (x, y), (x_other, y_other) in zip(*pair, strict=True):
            assert torch.equal(x, x_other) and (y is None and y_other is None or torch.equal(y, y_other))


@pytest.mark.parametrize(("target", "kind"), [("kind", None), ("count", None), ("width", None), ("count", "values")])
def test_a_table_is_what_a_csv_file_of_its_rows_is(tmp_path: Path, target: str, kind: Any) -> None:
    import pandas

    table = columns()
    if target != "kind":
        del table["kind"]
    pandas.DataFrame(table).to_csv(tmp_path / "d.csv", index=False)
    wanted = WantedTargets(kind)
    want = open_data(f"csv:{tmp_path}/d.csv?target={target}", wanted=wanted)
    same(open_data(f"parquet:{written(tmp_path / 'd.parquet', table)}?target={target}", wanted=wanted), want)


def test_rows_on_disk_are_the_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"parquet:{written(tmp_path / 'd.parquet', columns(), row_group_size=20)}?target=kind"
    held = open_data(spec)
    monkeypatch.setattr(rows, "HELD_BYTES", 100)
    data = open_data(spec)
    assert isinstance(data.train, RowsSplit) and not isinstance(held.train, RowsSplit)
    same(data, held)
    assert [data.train[5][1], data.train[5][0].tolist()] == [held.train[5][1], held.train[5][0].tolist()]
    np.testing.assert_array_equal(class_counts(data), class_counts(held))
    order = ["äsp", "moss", "fern", "more"]
    same(with_classes_of(data, order, 4), with_classes_of(held, order, 4))


def test_folders_and_arrow_files_hold_the_same_rows(tmp_path: Path) -> None:
    table = columns()
    want = open_data(f"parquet:{written(tmp_path / 'd.parquet', table)}?target=kind")
    for number in range(3):
        part = {name: values[30 * number : 30 * number + 30] for name, values in table.items()}
        written(tmp_path / "parts" / f"{number}.parquet", part)
    same(open_data(f"parquet:{tmp_path / 'parts'}?target=kind"), want)
    whole = arrow.table({**table, "kind": arrow.array(table["kind"]).dictionary_encode()})
    with arrow.OSFile(str(tmp_path / "d.arrow"), "wb") as file, arrow.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole, max_chunksize=25)
    same(open_data(f"parquet:{tmp_path / 'd.arrow'}?target=kind"), want)


def test_without_targets_every_column_is_a_feature(tmp_path: Path) -> None:
    table = columns()
    del table["kind"]
    data = open_data(f"parquet:{written(tmp_path / 'd.parquet', table)}", wanted=WantedTargets("none"))
    assert data.feature_names == ("width", "count", "on") and data.train[0][1] is None


def test_what_is_missing_or_of_another_kind_is_told_by_file_and_column(tmp_path: Path) -> None:
    path = written(tmp_path / "d.parquet", columns())
    refused(f"parquet:{path}", "expected ?target=COLUMN with one of width, count, on, kind; got no target")
    refused(f"parquet:{path}?target=sort", "got 'sort'")
    refused(f"parquet:{path}?target=count", "expected numeric feature columns, got kind")
    table = columns()
    del table["on"]
    written(tmp_path / "p" / "1.parquet", columns())
    second = written(tmp_path / "p" / "2.parquet", table)
    refused(f"parquet:{tmp_path / 'p'}?target=kind", str(second), "got no column 'on'")
    written(second, {**table, "on": table["kind"]})
    refused(f"parquet:{tmp_path / 'p'}?target=kind", str(second), "got text in column 'on'")
    holes = arrow.array([None if i == 41 else float(i) for i in range(90)])
    refused(f"parquet:{written(path, {**table, 'w': holes})}?target=kind", "row 42, column 'w'", "got nothing")
    no_kind = arrow.array([None if i == 3 else "a" for i in range(90)])
    refused(f"parquet:{written(path, {**table, 'kind': no_kind})}?target=kind", "row 4, column 'kind'", "a target")
    nested = arrow.array([[1.0]] * 90)
    refused(f"parquet:{written(path, {**table, 'n': nested})}?target=kind", "numeric feature columns, got n")


def test_damaged_files_and_others_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = written(tmp_path / "d.parquet", columns(500)).read_bytes()
    path = tmp_path / "x.parquet"
    path.write_bytes(b"a,b\n1,2\n")
    refused(f"parquet:{path}?target=b", "expected a Parquet or Arrow file")
    refused(f"parquet:{tmp_path / 'none.parquet'}?target=b", "got nothing there")
    for length in (len(whole) - 1, len(whole) // 2, 12):
        path.write_bytes(whole[:length])
        refused(f"parquet:{path}?target=kind", str(path), "cannot be read as a table")
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(4, len(whole), 6):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            data = open_data(f"parquet:{path}?target=kind")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert len(data.train) > 0


_OPEN = """
import resource, sys
import torch
from edgeprune.data import open_data, order, read
data = open_data(f"parquet:{sys.argv[1]}/few.parquet?target=y")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_data(f"parquet:{sys.argv[1]}/many.parquet?target=y")
n = 0
for x, y in read(data.train, order(len(data.train), 512, shuffle=True)[:200]):
    n += len(y)
total = len(data.train) + len(data.val) + len(data.test)
print(total, n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.sweep
def test_a_million_rows_take_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {f"c{number}": rng.integers(0, 9, 50_000).astype(np.int8) for number in range(400)}
    table = arrow.table({**base, "y": rng.integers(0, 5, 50_000)})
    parquet.write_table(table.slice(0, 2000), tmp_path / "few.parquet")
    with parquet.ParquetWriter(tmp_path / "many.parquet", table.schema) as writer:
        for _ in range(N_MANY // 50_000):
            writer.write_table(table)
    run = subprocess.run([sys.executable, "-c", _OPEN, str(tmp_path)], capture_output=True, text=True, check=True)
    total, n_read, kilobytes = map(int, run.stdout.split())
    assert (total, n_read) == (N_MANY, 200 * 512)
    assert kilobytes < MEGABYTES * 1024
