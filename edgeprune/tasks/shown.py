"""What a network says of single samples, for people: how far two networks are apart on each, and their words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.records import POINTS, TargetKind
from edgeprune.tasks.match import Match
from edgeprune.tasks.outputs import leaves, to_array
from edgeprune.tasks.registry import kind_of
from edgeprune.tasks.task import Task

_MOST_NUMBERS = 4
_MOST_LABELS = 6
_MOST_CLASSES = 4


@dataclass(frozen=True, slots=True)
class View:
    """How answers are told; `names` are those of classes or flags, `unit` that of numbers."""

    kind: TargetKind
    names: tuple[str, ...] = ()
    unit: str = ""

    @property
    def measure(self) -> str:
        """What `changes` counts, e.g. "mean difference, mmol"."""
        told = {"values": "mean difference", "flags": "other labels", "masks": "other pixels, %"}
        named = told.get(self.kind, "relative difference, %")
        return f"{named}, {self.unit}" if self.kind == "values" and self.unit else named

    def changes(self, dense: Any, slim: Any) -> np.ndarray | None:
        """How far both are apart on each sample, float64 `(n,)`; None where their outputs are not built alike."""
        pair = leaves(dense), leaves(slim)
        shapes = [[(name, value.shape) for name, value in found] for found in pair]
        if not shapes[0] or shapes[0] != shapes[1]:
            return None
        if self.kind not in _ROWS:
            return np.asarray(100 * (1 - Match().outcomes(slim, dense)))
        rows = [_ROWS[self.kind](to_array(found[0][1])) for found in pair]
        if self.kind == "values":
            return np.asarray(np.abs(rows[0] - rows[1]).mean(axis=1))
        apart = (rows[0] != rows[1]).astype(np.float64)
        return np.asarray(apart.sum(axis=1) if self.kind == "flags" else 100 * apart.mean(axis=1))

    def said(self, outputs: Any, sample: int) -> str:
        """The answer to one sample of a batch in words, e.g. "41.3", "cat, owl", "sky 61 %, sea 39 %"."""
        name, first = leaves(outputs)[0]
        rows = _ROWS.get(self.kind, _numbers)(to_array(first))
        return self.words(rows[sample], name) if sample < len(rows) else "nothing"

    def words(self, row: np.ndarray, name: str = "") -> str:
        """Numbers, flags or classes of pixels `(n,)` in words."""
        if self.kind == "flags":
            held = [self._name(int(index)) for index in np.flatnonzero(row)]
            return _listed(held, _MOST_LABELS) or "none"
        if self.kind == "masks":
            classes, counts = np.unique(row, return_counts=True)
            largest = np.argsort(-counts, kind="stable")
            shares = [f"{self._name(int(classes[i]))} {100 * counts[i] / row.size:.0f} %" for i in largest]
            return _listed(shares, _MOST_CLASSES)
        numbers = _listed([f"{value:.4g}" for value in row[: _MOST_NUMBERS + 1]], _MOST_NUMBERS)
        return f"{name}: {numbers}" if name else numbers

    def _name(self, index: int) -> str:
        return self.names[index] if 0 <= index < len(self.names) else str(index)


def view_of(task: Task, names: Sequence[str]) -> View:
    """How the answers of a task are told."""
    unit = task.metric.unit
    return View(kind_of(task), tuple(names), "" if unit == POINTS else unit)


def classes_of(scores: np.ndarray) -> np.ndarray:
    """The best class of each place, of scores `(n, n_classes, ...)`; a single channel is the logit of class 1."""
    return np.asarray((scores[:, 0] > 0).astype(np.int64) if scores.shape[1] == 1 else scores.argmax(axis=1))


def _numbers(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)


def _masks(scores: np.ndarray) -> np.ndarray:
    return _numbers(classes_of(scores))


# What is compared of the one output, one row a sample.
_ROWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "values": lambda values: _numbers(values).astype(np.float64),
    "flags": lambda logits: logits > 0,
    "masks": _masks,
}


def _listed(texts: Sequence[str], most: int) -> str:
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")
