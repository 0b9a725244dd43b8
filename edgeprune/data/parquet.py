"""Parquet and Arrow tables: numeric columns are the input features, one column is the target; read batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeprune.data.arrow import (
    EXTRA,
    NUMERIC,
    TargetColumn,
    batches_of,
    n_rows_of,
    numbers_of,
    schema_of,
)
from edgeprune.data.folders import check_inside
from edgeprune.data.limits import need
from edgeprune.data.rows import Rows, rows_for
from edgeprune.data.splits import build
from edgeprune.data.table import FRACTIONS, some
from edgeprune.data.targets import FoundTargets
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.records import DataSource, Targets
from edgeprune.tasks.wanted import WantedTargets

_ELEMENTS = 2**21  # of a batch
_MOST_ROWS = 2**36
_SUFFIXES = (".parquet", ".arrow", ".feather")


def open_parquet(place: str, target: str | None = None, wanted: WantedTargets | None = None) -> DataSource:
    """A table in a file, or in all of a folder's, cut 60/20/20 as the same table in a CSV file is.

    Raises:
        InputError: pyarrow is missing; no table, or a damaged one; no such target; columns that are not numeric, or
            that are others than in the first file; missing values.
    """
    wanted = wanted or WantedTargets()
    files = _files(Path(place))
    need("pyarrow.parquet", EXTRA)
    names = schema_of(files[0])
    features = _features(names, target, wanted, files[0])
    n_rows = sum(_n_rows(path, names) for path in files)
    if not 0 < n_rows <= _MOST_ROWS:
        raise InputError(f"{files[0]}: expected 1 to {_MOST_ROWS:,} rows, got {n_rows:,}")
    column = None if target is None else TargetColumn(target, names[target], wanted, str(files[0]))
    rows = rows_for(n_rows, len(features), f"parquet:{place}")
    read_rows(rows, files, features, column)
    found = FoundTargets({"all": None}, Targets("none")) if column is None else column.found()
    parts = rows.parts(found.values["all"], FRACTIONS)
    return build(f"parquet:{place}", parts, found.classes, features, found.notes, found.info)


def _features(names: Mapping[str, str], target: str | None, wanted: WantedTargets, path: Path) -> list[str]:
    """The columns beside the target, each of them of numbers."""
    if target not in (*names, *(None,) * (wanted.kind == "none")):
        got = "no target" if target is None else shown(target)
        raise InputError(f"{path}: expected ?target=COLUMN with one of {some(list(names))}; got {got}")
    features = [name for name in names if name != target]
    other = [name for name in features if names[name] not in NUMERIC]
    if other or not features:
        raise InputError(
            f"{path}: expected numeric feature columns, got {some(other) if other else 'none'}; leave out what is text "
            "or nested, or give each category a column of 0 and 1"
        )
    return features


def read_rows(rows: Rows, files: Sequence[Path], features: Sequence[str], column: TargetColumn | None) -> None:
    """Take in every batch of every file."""
    for path in files:
        for start, batch in batches_of(path, max(1, _ELEMENTS // len(features))):
            rows.append(numbers_of(batch, features, path, start))
            if column is not None:
                column.append(batch, path, start)
    rows.check_whole()


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


def _n_rows(path: Path, names: Mapping[str, str]) -> int:
    """The rows of a file, as its headers promise, once its columns are those of the first."""
    _check_same(names, schema_of(path), path)
    return n_rows_of(path)


def _check_same(names: Mapping[str, str], own: Mapping[str, str], path: Path) -> None:
    for name, kind in names.items():
        if own.get(name) != kind:
            what = f"{own[name]} in column {shown(name)}" if name in own else f"no column {shown(name)}"
            raise InputError(f"{path}: expected the columns of the first file, got {what}")
