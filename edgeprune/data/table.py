"""CSV tables: numeric columns are the input features, one column is the class or the number to be foretold."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from edgeprune.data.dialect import HEAD_BYTES, Dialect, detect, no_target
from edgeprune.data.limits import MAX_CLASSES, need
from edgeprune.data.splits import build, cut
from edgeprune.data.targets import FoundTargets, found_targets
from edgeprune.errors import InputError
from edgeprune.lines import error_text, one_line, shown
from edgeprune.reading import open_file
from edgeprune.records import CLASSES, DataSource, Targets
from edgeprune.tasks.wanted import WantedTargets, or_values

if TYPE_CHECKING:
    from pandas import DataFrame

MAX_COLUMNS = 32_768
FRACTIONS = (0.6, 0.2, 0.2)


def open_csv(
    file: str,
    target: str | None = None,
    asked: Mapping[str, str] | None = None,
    wanted: WantedTargets | None = None,
) -> DataSource:
    """A table with a header line, cut 60/20/20: x float32 `(n_columns,)`, y the class or number in the column `target`.

    Classes are the target's values, sorted; a target of decimal numbers is a value, and so are whole ones where values
    are wanted. Where no targets are wanted none has to be named: every column is then a feature. Features keep the
    names and the order of their columns. How the table is written is found out, see `edgeprune.data.dialect`, unless it
    is `asked`.

    Raises:
        InputError: pandas is missing; not a table; no such target; columns that are not numeric; missing values.
    """
    pandas = need("pandas", "'edgeprune[csv]'")
    path = Path(file)
    with open_file(path, "csv") as table:
        head = table.read(HEAD_BYTES)
        dialect = detect(head, path, target, asked or {})
        _check_width(head, dialect, path)
        table.seek(0)
        frame = _read(pandas, table, path, dialect)
    if target is None and wanted is not None and wanted.kind == "none":
        x, names = _features(frame, path)
        return build(f"csv:{file}", cut(x, None, FRACTIONS), (), names, dialect.notes, Targets("none"))
    if target is None or target not in frame.columns:
        raise no_target(dialect, path, list(frame.columns), target, some(list(frame.columns)))
    if dialect.first.count(target) > 1:
        raise InputError(f"{path}: expected one column {shown(target)}, got {dialect.first.count(target)}")
    x, names = _features(frame.drop(columns=[target]), path)
    found = _targets(frame[target], path, target, wanted or WantedTargets())
    parts = cut(x, found.values["all"], FRACTIONS)
    return build(f"csv:{file}", parts, found.classes, names, dialect.notes, found.info)


def _read(pandas: Any, file: BinaryIO, path: Path, dialect: Dialect) -> DataFrame:
    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would shift the names or drop what is left over.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # Without a guess at compression: a packed file could unpack to any size.
            frame = pandas.read_csv(
                file, compression=None, skipinitialspace=True, index_col=False, low_memory=False, **dialect.arguments()
            )
            return frame.rename(columns=str)
    except (ValueError, OSError, pandas.errors.ParserWarning) as error:  # parser and Unicode errors are ValueErrors
        reason = next(iter(reversed(error_text(error).strip().splitlines())), type(error).__name__)
        raise InputError(f"{path}: cannot be read as a CSV file ({dialect}): {one_line(reason, 120)}") from error


def _check_width(head: bytes, dialect: Dialect, path: Path) -> None:
    """Raise InputError where the first line has too many columns: a table takes time by its columns, not its bytes."""
    first = head.partition(b"\n")[0]
    if len(first) == HEAD_BYTES:
        raise InputError(f"{path}: expected a first line of at most {HEAD_BYTES:,} bytes, got a longer one")
    n_columns = len(dialect.first) or 1 + first.count(dialect.sep.encode())
    if n_columns > MAX_COLUMNS:
        raise InputError(f"{path}: expected at most {MAX_COLUMNS:,} columns, got {n_columns:,}")


def _features(frame: DataFrame, path: Path) -> tuple[torch.Tensor, list[str]]:
    """Columns as float32 `(n_rows, n_columns)` and their names."""
    names = [str(name) for name in frame.columns]
    if not names or not len(frame):
        raise InputError(f"{path}: expected rows and feature columns, got {len(frame)} rows of {len(names)} columns")
    other = [name for name, kind in zip(frame.columns, frame.dtypes, strict=True) if kind.kind not in "iufb"]
    if other:
        example = str(next(iter(frame[other[0]].dropna()), ""))[:40]
        raise InputError(
            f"{path}: expected numeric feature columns, got text or dates in {some(other)} (e.g. {example!r}); leave "
            "them out, or give each category a column of 0 and 1"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite below
        x = frame.to_numpy(dtype=np.float64).astype(np.float32)
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"{path}, row {row + 1}, column {shown(names[column])}: expected a finite number, got {x[row, column]}"
        )
    return torch.from_numpy(x), names


def _targets(column: Any, path: Path, target: str, wanted: WantedTargets) -> FoundTargets:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise InputError(f"{path}, row {missing[0] + 1}, column {shown(target)}: expected a target, got nothing")
    kind = wanted.kind
    if kind in (None, "none"):
        kind = "values" if column.dtype.kind == "f" else "classes"
    if kind != "classes":
        return found_targets({"all": column.to_numpy()}, f"{path}, column {shown(target)}", (), WantedTargets(kind))
    y, classes = _classes(column, path, target)
    return FoundTargets({"all": y}, CLASSES, tuple(classes))


def _classes(values: Any, path: Path, target: str) -> tuple[torch.Tensor, list[str]]:
    """Class indices int64 `(n_rows,)` and class names."""
    if values.dtype.kind == "f":
        raise InputError(f"{path}, column {shown(target)}: expected ints or strings as classes, got {values.dtype}")
    unique = values.unique().tolist()
    if not all(isinstance(value, str) for value in unique) and values.dtype.kind not in "iub":
        raise InputError(f"{path}, column {shown(target)}: expected ints or strings as classes, got a mixture")
    if len(unique) > MAX_CLASSES:
        raise InputError(
            f"{path}, column {shown(target)}: expected at most {MAX_CLASSES:,} classes, got {len(unique):,}"
            f"{or_values(list(map(str, unique)))}"
        )
    ordered = sorted(unique)
    index = {value: i for i, value in enumerate(ordered)}
    return torch.tensor([index[value] for value in values.tolist()]), [str(value) for value in ordered]


def some(names: Sequence[Any]) -> str:
    """Up to 12 names, e.g. "width, height, ... (30 in all)"."""
    listed = one_line(", ".join(str(name) for name in list(names)[:12]), 120)
    return listed if len(names) <= 12 else f"{listed}, ... ({len(names)} in all)"
