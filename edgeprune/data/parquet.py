"""Parquet and Arrow tables: numeric columns are the input features, one column is the target; read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.data.folders import check_inside
from edgeprune.data.limits import MAX_CLASSES, need
from edgeprune.data.rows import Rows, rows_for
from edgeprune.data.splits import build
from edgeprune.data.table import FRACTIONS, MAX_COLUMNS, some
from edgeprune.data.targets import FoundTargets, found_targets
from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown
from edgeprune.memory import bounded_memory
from edgeprune.reading import open_file
from edgeprune.records import CLASSES, DataSource, Targets
from edgeprune.tasks.wanted import WantedTargets

EXTRA = "'edgeprune[arrow]'"
_MEMORY = 2**31  # what reading may take beside
_ELEMENTS = 2**21  # of a batch
_MOST_ROWS = 2**36
_SUFFIXES = (".parquet", ".arrow", ".feather")
_THRIFT = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**22}


def open_parquet(place: str, target: str | None = None, wanted: WantedTargets | None = None) -> DataSource:
    """A table in a file, or in all of a folder's, cut 60/20/20 as the same table in a CSV file is.

    Raises:
        InputError: pyarrow is missing; no table, or a damaged one; no such target; columns that are not numeric, or
            that are others than in the first file; missing values.
    """
    wanted = wanted or WantedTargets()
    files = _files(Path(place))
    need("pyarrow.parquet", EXTRA)
    names = _schema(files[0])
    features = _features(names, target, wanted, files[0])
    n_rows = sum(_n_rows(path, names) for path in files)
    if not 0 < n_rows <= _MOST_ROWS:
        raise InputError(f"{files[0]}: expected 1 to {_MOST_ROWS:,} rows, got {n_rows:,}")
    column = None if target is None else _Column(target, names[target], wanted, str(files[0]))
    rows = rows_for(n_rows, len(features), f"parquet:{place}")
    _read(rows, files, features, column)
    found = FoundTargets({"all": None}, Targets("none")) if column is None else column.found()
    parts = rows.parts(found.values["all"], FRACTIONS)
    return build(f"parquet:{place}", parts, found.classes, features, found.notes, found.info)


def _features(names: Mapping[str, str], target: str | None, wanted: WantedTargets, path: Path) -> list[str]:
    """The columns beside the target, each of them of numbers."""
    if target not in (*names, *(None,) * (wanted.kind == "none")):
        got = "no target" if target is None else shown(target)
        raise InputError(f"{path}: expected ?target=COLUMN with one of {some(list(names))}; got {got}")
    features = [name for name in names if name != target]
    other = [name for name in features if names[name] not in ("int", "float", "bool")]
    if other or not features:
        raise InputError(
            f"{path}: expected numeric feature columns, got {some(other) if other else 'none'}; leave out what is text "
            "or nested, or give each category a column of 0 and 1"
        )
    return features


def _read(rows: Rows, files: Sequence[Path], features: Sequence[str], column: _Column | None) -> None:
    """Take in every batch of every file."""
    for path in files:
        for start, batch in _batches(path, max(1, _ELEMENTS // len(features))):
            rows.append(_numbers(batch, features, path, start))
            if column is not None:
                column.append(batch, path, start)
    rows.check_whole()


class _Column:
    """The target's column, taken in batch by batch: a number for each different value, or the values themselves."""

    def __init__(self, name: str, kind: str, wanted: WantedTargets, where: str) -> None:
        self._name, self._where = name, f"{where}, column {shown(name)}"
        self._kind = wanted.kind
        if self._kind in (None, "none"):
            self._kind = "values" if kind == "float" else "classes"
        allowed = ("int", "bool", "text") if self._kind == "classes" else ("int", "bool", "float")
        if self._kind not in ("classes", "values") or kind not in allowed:
            said = "ints or texts as classes" if self._kind == "classes" else "numbers"
            raise InputError(f"{self._where}: expected {said}, got {kind}")
        self._known: dict[Any, int] = {}
        self._parts: list[np.ndarray] = []

    def append(self, batch: Any, path: Path, start: int) -> None:
        """Take in the rows of a batch, of which `start` come before it in its file."""
        values = batch.column(self._name)
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"{path}, row {start + row + 1}, column {shown(self._name)}: expected a target, got nothing"
            )
        if self._kind == "values":
            self._parts.append(values.to_numpy(zero_copy_only=False).astype(np.float64))
            return
        encoded = values if hasattr(values, "dictionary") else values.dictionary_encode()
        index = [self._known.setdefault(value, len(self._known)) for value in encoded.dictionary.to_pylist()]
        if len(self._known) > MAX_CLASSES:
            raise InputError(f"{self._where}: expected at most {MAX_CLASSES:,} classes, got more")
        numbers = np.array(index, np.int32) if index else np.empty(0, np.int32)
        self._parts.append(numbers[encoded.indices.to_numpy(zero_copy_only=False)])

    def found(self) -> FoundTargets:
        """Classes, the values that occur, sorted; or values."""
        values = np.concatenate(self._parts)
        if self._kind == "values":
            return found_targets({"all": values}, self._where, (), WantedTargets("values"))
        occurring = set(np.unique(values).tolist())
        ordered = sorted(value for value, number in self._known.items() if number in occurring)
        place = np.zeros(len(self._known), np.int64)
        place[[self._known[value] for value in ordered]] = np.arange(len(ordered))
        return FoundTargets({"all": torch.from_numpy(place[values])}, CLASSES, tuple(map(str, ordered)))


def _numbers(batch: Any, features: Sequence[str], path: Path, start: int) -> np.ndarray:
    """The feature columns of a batch as float32 `(n_rows, n_columns)`."""
    numbers = np.empty((batch.num_rows, len(features)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is reported as infinite below
        for place, name in enumerate(features):
            numbers[:, place] = batch.column(name).to_numpy(zero_copy_only=False)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, place = bad[0]
        raise InputError(
            f"{path}, row {start + row + 1}, column {shown(features[place])}: expected a finite number, got "
            f"{'nothing' if batch.column(features[place])[int(row)].as_py() is None else numbers[row, place]}"
        )
    return numbers


# -- files -------------------------------------------------------------------------------------------------------------


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise InputError(f"{place}: expected tables in it ({', '.join(_SUFFIXES)}), got none")
    for path in found:
        check_inside(path, place)
    return found


def _schema(path: Path) -> dict[str, str]:
    """The columns of a file, and of what kind each is: int, float, bool, text, or Arrow's own name of another."""
    with _opened(path) as table:
        schema = table.schema_arrow if _is_parquet(table) else table.schema
        if len(schema.names) > MAX_COLUMNS:
            raise InputError(f"{path}: expected at most {MAX_COLUMNS:,} columns, got {len(schema.names):,}")
        twice = [name for name in schema.names if schema.names.count(name) > 1] if len(schema.names) < 4096 else []
        if twice or len(set(schema.names)) < len(schema.names):
            raise InputError(f"{path}: expected each column once, got {some(twice) or 'one'} twice")
        return {field.name: _kind(field.type) for field in schema}


def _kind(kind: Any) -> str:
    types = need("pyarrow.types", EXTRA)
    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    known = {
        "int": types.is_integer, "float": types.is_floating, "bool": types.is_boolean, "text": types.is_string,
        "text ": types.is_large_string,
    }  # fmt: skip
    return next((name.strip() for name, is_kind in known.items() if is_kind(kind)), str(kind)[:60])


def _n_rows(path: Path, names: Mapping[str, str]) -> int:
    """The rows of a file, as its headers promise, once its columns are those of the first."""
    _check_same(names, _schema(path), path)
    with _opened(path) as table:
        if _is_parquet(table):
            return int(table.metadata.num_rows)
        return sum(table.get_batch(number).num_rows for number in range(table.num_record_batches))


def _check_same(names: Mapping[str, str], own: Mapping[str, str], path: Path) -> None:
    for name, kind in names.items():
        if own.get(name) != kind:
            what = f"{own[name]} in column {shown(name)}" if name in own else f"no column {shown(name)}"
            raise InputError(f"{path}: expected the columns of the first file, got {what}")


def _batches(path: Path, n_rows: int) -> Iterator[tuple[int, Any]]:
    """The rows of a file in batches, with how many come before."""
    done = 0
    with _opened(path) as table:
        with bounded_memory(_MEMORY):
            stream = _stream(table, n_rows)
        while True:
            with bounded_memory(_MEMORY):
                batch = next(stream, None)
                if batch is not None:
                    batch.validate(full=True)
            if batch is None:
                return
            yield done, batch
            done += batch.num_rows


def _stream(table: Any, n_rows: int) -> Iterator[Any]:
    if _is_parquet(table):
        yield from table.iter_batches(batch_size=n_rows, use_threads=False)
        return
    for number in range(table.num_record_batches):
        whole = table.get_batch(number)
        whole.validate(full=True)
        for start in range(0, whole.num_rows, n_rows):
            yield whole.slice(start, n_rows)


def _is_parquet(table: Any) -> bool:
    return isinstance(table, need("pyarrow.parquet", EXTRA).ParquetFile)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file, or one of Arrow's, by what its first bytes say.

    Raises:
        InputError: none of both, or a damaged one.
    """
    arrow, parquet = need("pyarrow.lib", EXTRA), need("pyarrow.parquet", EXTRA)
    try:
        with open_file(path, "parquet") as file:
            magic = file.read(6)
            file.seek(0)
            if magic[:4] == b"PAR1":
                yield parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False, **_THRIFT)
            elif magic == b"ARROW1":
                yield need("pyarrow.ipc", EXTRA).open_file(file)
            else:
                raise InputError(f"{path}: expected a Parquet or Arrow file, got bytes {shown(magic)}")
    except InputError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:  # of a damaged file
        raise InputError(f"{path}: cannot be read as a table: {error_line(error)}") from error
