"""Data sets that Hugging Face's library has saved to disk: its Arrow files are read, its code is not run.

A folder holds `dataset_info.json`, which names the columns and their kinds, `state.json`, which names the files, and
the files; or one such folder a split and `dataset_dict.json`. No script, no network, no cache: what a column only names
(an image by its path or address) is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.data.arrow import (
    EXTRA,
    TargetColumn,
    batches_of,
    mapped,
    n_rows_of,
    numbers_of,
    numbers_of_values,
    schema_of,
)
from edgeprune.data.contained import ContainedImages
from edgeprune.data.framing import Framing
from edgeprune.data.hfinfo import Saved, saved_in
from edgeprune.data.images import decoded
from edgeprune.data.limits import need
from edgeprune.data.rows import rows_for
from edgeprune.data.splits import LazySplit, build, parts_of_groups
from edgeprune.data.table import some
from edgeprune.data.targets import FoundTargets
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import LIMITS
from edgeprune.records import CLASSES, DataSource, Targets
from edgeprune.tasks.wanted import WantedTargets

OPTIONS = ("input", "target")
_BATCH = 4096  # rows


def open_hf(
    place: str, options: Mapping[str, str], framing: Framing, wanted: WantedTargets | None = None
) -> DataSource:
    """A data set that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; see docs/DATA.md.

    Raises:
        InputError: pyarrow is missing; no such folder, or a damaged one; columns that are not there, cannot be told
            apart or are of kinds that are not read; missing values; images that are not in the files.
    """
    wanted = wanted or WantedTargets()
    need("pyarrow.parquet", EXTRA)
    saved = saved_in(Path(place))
    target = _target(saved, options.get("target"), wanted)
    inputs = _inputs(saved, options.get("input"), target)
    column = None if target is None else _column(saved, target, wanted)
    is_image = saved.features[inputs[0]].kind == "image"
    reader = _images if is_image else _numbers
    return reader(f"hf:{place}", saved, inputs, column, framing)


# -- columns -----------------------------------------------------------------------------------------------------------


def _target(saved: Saved, asked: str | None, wanted: WantedTargets) -> str | None:
    if asked is not None:
        if asked not in saved.features:
            raise InputError(
                f"{saved.base}: expected ?target= with one of {some(list(saved.features))}; got {shown(asked)}"
            )
        return asked
    labels = [name for name, feature in saved.features.items() if feature.kind == "classes"]
    if wanted.kind == "none":
        return None
    if len(labels) != 1:
        got = f"{len(labels)} columns of class labels" if labels else "no column of class labels"
        raise InputError(f"{saved.base}: expected ?target=COLUMN with one of {some(list(saved.features))}; got {got}")
    return labels[0]


def _inputs(saved: Saved, asked: str | None, target: str | None) -> list[str]:
    """The column of images or of lists of numbers; else all columns of numbers beside the target."""
    others = {name: feature.kind for name, feature in saved.features.items() if name != target}
    if asked is not None:
        if others.get(asked) not in ("image", "list", "number"):
            raise InputError(
                f"{saved.base}: expected ?input= with a column of images or numbers, one of {some(list(others))}; got "
                f"{shown(asked)}"
            )
        return [asked]
    alone = [name for name, kind in others.items() if kind == "image" or (kind == "list" and len(others) == 1)]
    return alone if len(alone) == 1 else _plain(saved, others)


def _plain(saved: Saved, others: Mapping[str, str]) -> list[str]:
    """All columns, each of numbers."""
    strange = [name for name, kind in others.items() if kind not in ("number", "classes")]
    if strange or not others:
        raise InputError(
            f"{saved.base}: expected one column of images, or numbers alone beside the target, got "
            f"{some(strange) if strange else 'none'}; ?input=COLUMN names one"
        )
    return list(others)


def _column(saved: Saved, name: str, wanted: WantedTargets) -> TargetColumn:
    """What takes in the targets; of a ClassLabel they are numbers of its names."""
    feature = saved.features[name]
    kind = schema_of(saved.files[0][0]).get(name, "nothing")
    return TargetColumn(name, kind, wanted, str(saved.base), feature.classes)


# -- splits ------------------------------------------------------------------------------------------------------------


def _numbers(
    name: str, saved: Saved, inputs: Sequence[str], column: TargetColumn | None, framing: Framing
) -> DataSource:
    """Rows of several columns, or of one of lists of one length."""
    counts = _counts(saved)
    is_list = saved.features[inputs[0]].kind == "list"
    width = _length(saved, inputs[0]) if is_list else len(inputs)
    rows = rows_for(sum(counts), width, name)
    for path, start, batch in _each(saved, [*inputs, *([column.name] if column else [])]):
        rows.append(_lists(batch, inputs[0], width, path) if is_list else numbers_of(batch, inputs, path, start))
        if column is not None:
            column.append(batch, path, start)
    rows.check_whole()
    found = _found(column)
    parts = parts_of_groups(_labels(found, sum(counts)), counts)
    splits = rows.splits(found.values["all"], parts)
    return build(name, splits, found.classes, () if is_list else inputs, found.notes, found.info)


def _images(
    name: str, saved: Saved, inputs: Sequence[str], column: TargetColumn | None, framing: Framing
) -> DataSource:
    places = [(path, mapped(path)) for files in saved.files for path in files]
    if column is not None:
        for path, start, batch in _each(saved, [inputs[0], column.name]):
            column.append(batch, path, start)
    found = _found(column)
    images = HfImages(places, inputs[0], found.values["all"], framing)
    parts = parts_of_groups(_labels(found, len(images)), _counts(saved))
    splits = [LazySplit(images, part) for part in parts]
    notes = (*images.notes, *found.notes)
    return build(name, splits, found.classes, notes=notes, targets=found.info, preparation=framing.stated)


def _counts(saved: Saved) -> list[int]:
    """The rows of each split."""
    return [sum(map(n_rows_of, files)) for files in saved.files]


def _each(saved: Saved, names: Sequence[str]) -> Iterator[tuple[Path, int, Any]]:
    """The batches of all files, once each file has the columns."""
    for path in (path for files in saved.files for path in files):
        own = schema_of(path)
        missing = [name for name in names if name not in own]
        if missing:
            raise InputError(f"{path}: expected the columns that dataset_info.json names, got no {some(missing)}")
        for start, batch in batches_of(path, _BATCH):
            yield path, start, batch


def _found(column: TargetColumn | None) -> FoundTargets:
    return FoundTargets({"all": None}, Targets("none")) if column is None else column.found()


def _labels(found: FoundTargets, n_rows: int) -> np.ndarray:
    y = found.values["all"]
    return y.numpy() if y is not None and found.info == CLASSES else np.zeros(n_rows, np.int64)


def _length(saved: Saved, name: str) -> int:
    """How long the lists of a column are, by the first."""
    for path, _, batch in _each(saved, [name]):
        lengths = _lengths(batch, name, path)
        if len(lengths) and lengths[0] > 0:
            return int(lengths[0])
    raise InputError(f"{saved.base}, column {shown(name)}: expected lists of numbers, got none")


def _lengths(batch: Any, name: str, path: Path) -> np.ndarray:
    """The length of the list in each row of a column, int `(n_rows,)`."""
    lists, types = batch.column(name), need("pyarrow.types", EXTRA)
    where = f"{path}, column {shown(name)}"
    if lists.null_count:
        raise InputError(f"{where}: expected a list in each row, got nothing in {lists.null_count:,}")
    if types.is_fixed_size_list(lists.type):
        return np.full(len(lists), lists.type.list_size)
    if not types.is_list(lists.type) and not types.is_large_list(lists.type):
        raise InputError(f"{where}: expected lists, as dataset_info.json says, got {str(lists.type):.60}")
    return np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False))


def _lists(batch: Any, name: str, width: int, path: Path) -> np.ndarray:
    """A column of lists as float32 `(n_rows, width)`."""
    where = f"{path}, column {shown(name)}"
    lengths = _lengths(batch, name, path)
    if (lengths != width).any():
        raise InputError(f"{where}: expected {width} numbers in each row, got {int(lengths[lengths != width][0])}")
    return numbers_of_values(batch.column(name).flatten(), where).reshape(batch.num_rows, width)


class HfImages(ContainedImages):
    """Images in Arrow files, which the system maps."""

    def __init__(
        self, places: Sequence[tuple[Path, Any]], column: str, targets: Tensor | None, framing: Framing
    ) -> None:
        self._places, self._column = list(places), column
        self._ends = np.cumsum([table.num_rows for _, table in places])
        super().__init__(targets, framing)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """The file and row of a sample, for messages."""
        place, row = self._place(index)
        return f"{self._places[place][0]}, row {row + 1}, column {shown(self._column)}"

    @contextmanager
    def opened(self, index: int) -> Iterator[Any]:
        """The image of a sample, as `images.opened`."""
        place, row = self._place(index)
        held = self._places[place][1].column(self._column)[row].as_py()
        held = held if isinstance(held, dict) else {}
        content, limit = held.get("bytes"), LIMITS["image"].max_bytes
        if not isinstance(content, bytes) or len(content) > limit:
            got = "a path or address" if content is None and held.get("path") else "something else"
            raise InputError(f"{self.name(index)}: expected the bytes of an image, at most {limit:,}, got {got}")
        with decoded(io.BytesIO(content), lambda: self.name(index)) as image:
            yield image

    def _place(self, index: int) -> tuple[int, int]:
        """The file of a sample, and its row there."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, index - (int(self._ends[place - 1]) if place else 0)
