"""Rows of numbers on disk: a table of any length takes the memory of its targets alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.splits import Taking, TensorSplit, parts_of
from edgeprune.errors import InputError

HELD_BYTES = 256 * 2**20  # of numbers that are held in memory; what is more lies on disk
MAX_BYTES = 64 * 2**30  # of one table on disk
_SPREAD = 4  # rows that lie among so many times their number are read in one go


class Rows(ABC):
    """Rows float32 `(n_rows, n_columns)` that come one batch after the other."""

    def __init__(self, n_rows: int, n_columns: int, where: str) -> None:
        self.n_rows, self.n_columns, self._where = n_rows, n_columns, where
        self.n_taken = 0

    def append(self, rows: np.ndarray) -> None:
        """Take in the next ones; InputError where they are more than were promised."""
        if self.n_taken + len(rows) > self.n_rows:
            raise InputError(f"{self._where}: expected the {self.n_rows:,} rows that the headers promise, got more")
        self._write(rows)
        self.n_taken += len(rows)

    def check_whole(self) -> None:
        """Raise InputError where rows are missing."""
        if self.n_taken < self.n_rows:
            raise InputError(
                f"{self._where}: expected the {self.n_rows:,} rows that the headers promise, got {self.n_taken:,}"
            )

    @abstractmethod
    def _write(self, rows: np.ndarray) -> None: ...

    def parts(self, y: Tensor | None, fractions: Sequence[float]) -> Sequence[Taking]:
        """Splits of the rows with their targets `(n_rows, ...)`, as `splits.cut` cuts them."""
        return self.splits(y, [part.numpy() for part in parts_of(self.n_rows, y, fractions)])

    @abstractmethod
    def splits(self, y: Tensor | None, parts: Sequence[np.ndarray]) -> Sequence[Taking]:
        """Splits of the rows at each of `parts` `(k,)`."""


class HeldRows(Rows):
    """Rows in memory."""

    def __init__(self, n_rows: int, n_columns: int, where: str) -> None:
        super().__init__(n_rows, n_columns, where)
        self._x = np.empty((n_rows, n_columns), np.float32)

    def _write(self, rows: np.ndarray) -> None:
        self._x[self.n_taken : self.n_taken + len(rows)] = rows

    def splits(self, y: Tensor | None, parts: Sequence[np.ndarray]) -> Sequence[Taking]:
        whole = TensorSplit(torch.from_numpy(self._x), y)
        return [whole.part(torch.from_numpy(part)) for part in parts]


class RowFile(Rows):
    """Rows in a file without a name, which goes with the process.

    Raises:
        InputError: more than MAX_BYTES, or than half of what is free where temporary files lie.
    """

    def __init__(self, n_rows: int, n_columns: int, where: str) -> None:
        super().__init__(n_rows, n_columns, where)
        n_bytes, folder = 4 * n_rows * n_columns, tempfile.gettempdir()
        most = min(MAX_BYTES, shutil.disk_usage(folder).free // 2)
        if n_bytes > most:
            raise InputError(
                f"{where}: expected at most {most:,} bytes of numbers, as {folder} can hold, got {n_bytes:,}"
            )
        self._file = tempfile.TemporaryFile(prefix="edgeprune-")

    def _write(self, rows: np.ndarray) -> None:
        try:
            self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"{tempfile.gettempdir()}: rows of a table cannot be kept: {error.strerror}") from error

    def splits(self, y: Tensor | None, parts: Sequence[np.ndarray]) -> Sequence[Taking]:
        return [RowsSplit(self, part, None if y is None else y[torch.from_numpy(part)]) for part in parts]

    def read(self, index: np.ndarray) -> np.ndarray:
        """The rows at `index` int `(k,)`, float32 `(k, n_columns)`."""
        if not len(index):
            return np.empty((0, self.n_columns), np.float32)
        low, high = int(index.min()), int(index.max()) + 1
        if high - low <= _SPREAD * len(index):
            return self._run(low, high)[index - low]
        return np.concatenate([self._run(int(row), int(row) + 1) for row in index])

    def _run(self, start: int, stop: int) -> np.ndarray:
        n_bytes = 4 * self.n_columns
        content = os.pread(self._file.fileno(), (stop - start) * n_bytes, start * n_bytes)
        if len(content) < (stop - start) * n_bytes:
            raise InputError(f"{self._where}: expected rows as they were kept, got fewer")
        return np.frombuffer(content, np.float32).reshape(stop - start, self.n_columns)


def rows_for(n_rows: int, n_columns: int, where: str) -> Rows:
    """Where rows are kept: in memory as long as they take at most HELD_BYTES, else on disk."""
    return (HeldRows if 4 * n_rows * n_columns <= HELD_BYTES else RowFile)(n_rows, n_columns, where)


class RowsSplit(Taking):
    """A split of rows on disk, those at `index` `(n,)`; `y` are their targets `(n, ...)`, None where there are none."""

    byte_scale = None

    def __init__(self, rows: RowFile, index: np.ndarray, y: Tensor | None) -> None:
        self.rows, self.index, self.y = rows, index, y

    @property
    def labels(self) -> np.ndarray | None:
        """The targets `(n, ...)`, apart from the rows."""
        return None if self.y is None else self.y.numpy()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        x, y = self.take(torch.tensor([index]))
        one = None if y is None else y[0]
        return x[0], int(one) if one is not None and one.dim() == 0 and not one.is_floating_point() else one

    def take(self, index: Tensor) -> tuple[Tensor, Any]:
        rows = np.array(self.rows.read(self.index[index.numpy()]))
        return torch.from_numpy(rows), None if self.y is None else self.y[index]

    def renumbered(self, table: Tensor) -> RowsSplit:
        return RowsSplit(self.rows, self.index, None if self.y is None else table[self.y])
