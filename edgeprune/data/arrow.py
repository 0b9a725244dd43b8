"""Tables as Arrow has them, in Parquet files and its own: columns, batches of rows, and targets taken in by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.data.limits import MAX_CLASSES, need
from edgeprune.data.table import MAX_COLUMNS, some
from edgeprune.data.targets import FoundTargets, found_targets
from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown
from edgeprune.memory import bounded_memory
from edgeprune.reading import open_file
from edgeprune.records import CLASSES
from edgeprune.tasks.wanted import WantedTargets

EXTRA = "'edgeprune[arrow]'"
NUMERIC = ("int", "float", "bool")
_MEMORY = 2**31  # what reading may take beside
_THRIFT = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**22}
_STREAM = b"\xff\xff\xff\xff"


class TargetColumn:
    """The target's column, taken in batch by batch: a number for each different value, or the values themselves."""

    def __init__(self, name: str, kind: str, wanted: WantedTargets, where: str, classes: Sequence[str] = ()) -> None:
        self.name, self._where, self._names = name, f"{where}, column {shown(name)}", tuple(classes)
        self._kind = wanted.kind
        if self._kind in (None, "none"):
            self._kind = "values" if kind == "float" else "classes"
        known = ("int",) if classes else ("int", "bool", "text")
        allowed = known if self._kind == "classes" else ("int", "bool", "float")
        if self._kind not in ("classes", "values") or kind not in allowed:
            said = "ints or texts as classes" if self._kind == "classes" else "numbers"
            raise InputError(f"{self._where}: expected {said}, got {kind}")
        self._known: dict[Any, int] = {}
        self._parts: list[np.ndarray] = []

    def append(self, batch: Any, path: Path, start: int) -> None:
        """Take in the rows of a batch, of which `start` come before it in its file."""
        values = batch.column(self.name)
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"{path}, row {start + row + 1}, column {shown(self.name)}: expected a target, got nothing"
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
        if self._names:  # the column holds their numbers
            numbers = np.array(list(self._known), np.int64)[values]
            return found_targets({"all": numbers}, self._where, self._names, WantedTargets("classes"))
        occurring = set(np.unique(values).tolist())
        ordered = sorted(value for value, number in self._known.items() if number in occurring)
        place = np.zeros(len(self._known), np.int64)
        place[[self._known[value] for value in ordered]] = np.arange(len(ordered))
        return FoundTargets({"all": torch.from_numpy(place[values])}, CLASSES, tuple(map(str, ordered)))


def numbers_of_values(values: Any, where: str) -> np.ndarray:
    """A column's numbers as float32 `(n,)`."""
    if _kind(values.type) not in NUMERIC:
        raise InputError(f"{where}: expected numbers, got {_kind(values.type)}")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: expected finite numbers, got others or nothing among them")
    return numbers


def numbers_of(batch: Any, features: Sequence[str], path: Path, start: int) -> np.ndarray:
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


def schema_of(path: Path) -> dict[str, str]:
    """The columns of a file, and of what kind each is: int, float, bool, text, or Arrow's own name of another."""
    with opened(path) as table:
        schema = table.schema_arrow if _is_parquet(table) else table.schema
        if len(schema.names) > MAX_COLUMNS:
            raise InputError(f"{path}: expected at most {MAX_COLUMNS:,} columns, got {len(schema.names):,}")
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        if twice:
            raise InputError(f"{path}: expected each column once, got {some(twice)} twice")
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


def batches_of(path: Path, n_rows: int) -> Iterator[tuple[int, Any]]:
    """The rows of a file in batches, with how many come before."""
    done = 0
    with opened(path) as table:
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
    for whole in _wholes(table):
        whole.validate(full=True)
        for start in range(0, whole.num_rows, n_rows):
            yield whole.slice(start, n_rows)


def _wholes(table: Any) -> Iterator[Any]:
    """The batches of one of Arrow's files, which can be got by number, or of a stream, one after the other."""
    if hasattr(table, "get_batch"):
        yield from map(table.get_batch, range(table.num_record_batches))
    else:
        yield from table


def n_rows_of(path: Path) -> int:
    """The rows of a file, as its headers promise."""
    with opened(path) as table:
        if _is_parquet(table):
            return int(table.metadata.num_rows)
        with bounded_memory(_MEMORY):
            return sum(batch.num_rows for batch in _wholes(table))


def _is_parquet(table: Any) -> bool:
    return isinstance(table, need("pyarrow.parquet", EXTRA).ParquetFile)


def mapped(path: Path) -> Any:
    """A table of Arrow's whose bytes the system reads when they are needed, once its headers were found good."""
    ipc = need("pyarrow.ipc", EXTRA)
    with opened(path) as table:  # what it is, and what is wrong with it
        if _is_parquet(table):
            raise InputError(f"{path}: expected one of Arrow's files, got Parquet")
        is_stream = not hasattr(table, "get_batch")
        source = need("pyarrow", EXTRA).memory_map(str(path))  # ahead of the bound, which counts addresses
        with bounded_memory(_MEMORY):
            whole = (ipc.open_stream if is_stream else ipc.open_file)(source).read_all()
            whole.validate(full=True)
    return whole


@contextmanager
def opened(path: Path) -> Iterator[Any]:
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
            elif magic[:4] == _STREAM:
                yield need("pyarrow.ipc", EXTRA).open_stream(file)
            else:
                raise InputError(f"{path}: expected a Parquet or Arrow file, got bytes {shown(magic)}")
    except InputError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:  # of a damaged file
        raise InputError(f"{path}: cannot be read as a table: {error_line(error)}") from error
