"""What small numbers cost in another runtime than onnxruntime, by the metric of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from edgeprune.data import batches
from edgeprune.data.inputs import as_arrays
from edgeprune.export import ort
from edgeprune.export.answers import structure_of
from edgeprune.export.feeds import arrays_of, filled
from edgeprune.export.target import Material
from edgeprune.records import DataSource
from edgeprune.tasks.budget import drop_of, is_within
from edgeprune.tasks.outputs import mapped
from edgeprune.tasks.task import Task, joined

_MOST = 1024  # samples of the validation split: one runs at a time
_BATCH = 256
Run = Callable[[Sequence[Sequence[np.ndarray]]], list[list[np.ndarray]]]  # all outputs of batches, each all inputs


def judged(material: Material, in_float: Run, in_int8: Run, batch: int) -> tuple[str, bool]:
    """What the metric of the task comes to, in words, and whether what is lost against the float file may be.

    Args:
        material: with data and a task.
        in_float: the float file in the runtime, which gives what the network does.
        in_int8: the quantised one.
        batch: the size of their batches.
    """
    task, data = material.task, material.data
    assert task is not None and data is not None  # else nothing was quantised
    parts = list(islice(_parts(material, data), _MOST // _BATCH))
    arrays = [np.concatenate(column) for column in zip(*(given for given, _ in parts), strict=True)]
    before, after = (_answers(arrays, run, batch) for run in (in_float, in_int8))
    put, start = _put_together(material), 0
    outcomes: list[tuple[Any, Any]] = []
    for given, raw in parts:
        rows = slice(start, start + len(given[0]))
        start = rows.stop
        want, got = (put([output[rows] for output in outputs]) for outputs in (before, after))
        targets = want if task.by_reference else task.targets(raw)
        outcomes.append((task.outcomes(want, targets), task.outcomes(got, targets)))
    values = [task.value(joined(list(column))) for column in zip(*outcomes, strict=True)]
    return _judgement(task, values[0], values[1], material)


def _parts(material: Material, data: DataSource) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Batches of the validation split: all inputs as the files take them, and the raw targets."""
    for x, raw in batches(data.val, _BATCH):
        yield arrays_of(material.inputs(material.held(as_arrays(x))).file), raw


def _judgement(task: Task, before: float, after: float, material: Material) -> tuple[str, bool]:
    """In words, and whether the budget is kept."""
    metric = task.metric
    limit = drop_of(material.max_drop, metric).limit(metric, before)
    said = f"{metric.name} {metric.shown(after)} ({metric.shown(before)} in float)"
    return said, is_within(metric.drop(before, after), limit)


def _put_together(material: Material) -> Callable[[Sequence[np.ndarray]], Any]:
    """What puts outputs into the dicts and lists in which the network gives them."""
    names = [value.name for value in ort.session(material.network).get_outputs()]
    structure = structure_of(material.model.program)

    def put(outputs: Sequence[np.ndarray]) -> Any:
        named = dict(zip(names, outputs, strict=True))
        return mapped(structure, lambda name: named[name])

    return put


def _answers(arrays: Sequence[np.ndarray], run: Run, batch: int) -> list[np.ndarray]:
    """All outputs `(n, ...)` for inputs `(n, ...)`; the last batch is filled from the start."""
    n_rows = len(arrays[0])
    got = run([[array[rows] for array in arrays] for rows in filled(n_rows, batch)])
    return [np.concatenate(column)[:n_rows] for column in zip(*got, strict=True)]
