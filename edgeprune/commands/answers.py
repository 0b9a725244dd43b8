"""What both networks of a run answer to single samples: for the report's picture, and the samples that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgeprune.data import Inputs, read
from edgeprune.data.splits import spaced
from edgeprune.records import DataSource, Normalization
from edgeprune.results import ChangedSample
from edgeprune.tasks.multilabel import per_label
from edgeprune.tasks.outputs import leaves, to_array
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.shown import View, classes_of, view_of
from edgeprune.tasks.task import Outcomes, Task
from edgeprune.training import outputs_of

if TYPE_CHECKING:
    from edgeprune.report.answers import Answers, MaskedImage

_LOOKED_AT = 1000  # samples of the test split, evenly spaced
_BATCH = 64
_TOLD = 8
_PICTURES = 4
_POINTS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """The samples that changed most, what their change is measured in, and what the report draws, if anything."""

    change: str = ""
    changed: tuple[ChangedSample, ...] = ()
    answers: Answers | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Both networks, and what their inputs are made with."""

    dense: nn.Module
    slim: nn.Module
    normalization: Normalization

    def answers(self, data: DataSource, index: np.ndarray) -> tuple[Any, Any, Any]:
        """What both make of some test samples, and their raw targets."""
        batch = [torch.from_numpy(index)]
        (_, dense, targets), *_ = outputs_of(self.dense, data.test, self.normalization, batch)
        (_, slim, _), *_ = outputs_of(self.slim, data.test, self.normalization, batch)
        return dense, slim, targets


def told_of(task: Task, data: DataSource, pair: Pair, outcomes: Sequence[Outcomes]) -> Told:
    """Look at some of the test samples, one batch at a time; `outcomes` are those of dense and slim on all."""
    view = view_of(task, data.classes)
    index = spaced(len(data.test), _LOOKED_AT)  # type: ignore[arg-type]
    changes = []
    for start in range(0, len(index), _BATCH):
        some = index[start : start + _BATCH]
        dense, slim, _ = pair.answers(data, some)
        found = view.changes(dense, slim)
        if found is None or len(found) != len(some):  # of other shapes, or not of samples: nothing to tell side by side
            return Told()
        changes.append(found)
    change = np.concatenate(changes)
    furthest = np.argsort(-change, kind="stable")
    most = [int(i) for i in furthest[:_TOLD] if change[i] > 0]
    changed = tuple(_changed(view, data, pair, task, int(index[i]), float(change[i])) for i in most)
    return Told(view.measure, changed, _answers(view, task, data, pair, outcomes, index[furthest]))


def _changed(  # noqa: PLR0913 - a sample, both networks and how they are told
    view: View, data: DataSource, pair: Pair, task: Task, index: int, change: float
) -> ChangedSample:
    dense, slim, raw = pair.answers(data, np.array([index]))
    return ChangedSample(index, _truth(view, task, raw), view.said(dense, 0), view.said(slim, 0), change)


def _truth(view: View, task: Task, raw: Any) -> str:
    """What is true of a lone sample; nothing where the dense network says that, or only the user's task knows."""
    if view.kind not in ("values", "flags", "masks"):
        return ""
    row = to_array(task.targets(raw)).reshape(-1)
    known = row[row != task.ignore] if isinstance(task, Segmentation) and task.ignore is not None else row
    return view.words(known)


# --- the picture


def _answers(  # noqa: PLR0913 - both networks on the samples of a task
    view: View, task: Task, data: DataSource, pair: Pair, outcomes: Sequence[Outcomes], furthest: np.ndarray
) -> Answers | None:
    from edgeprune.report.answers import Errors, PerLabel  # matplotlib: a second that other commands need not wait

    if view.kind == "none":
        return Errors(1 - np.asarray(outcomes[1]))
    if view.kind == "flags":
        return PerLabel(per_label(outcomes[0]), per_label(outcomes[1]), tuple(data.classes))
    if view.kind == "values":
        return _predicted(view, task, data, pair)
    return _masks(task, data, pair, furthest) if view.kind == "masks" else None


def _predicted(view: View, task: Task, data: DataSource, pair: Pair) -> Answers:
    """Some samples; of a map the mean over its positions."""
    from edgeprune.report.answers import Predicted

    index = spaced(len(data.test), _POINTS)  # type: ignore[arg-type]
    rows: tuple[list[np.ndarray], ...] = ([], [], [])
    for start in range(0, len(index), _BATCH):
        dense, slim, raw = pair.answers(data, index[start : start + _BATCH])
        for own, values in zip(rows, (task.targets(raw), leaves(dense)[0][1], leaves(slim)[0][1]), strict=True):
            own.append(_columns(to_array(values)))
    truth, dense, slim = (np.concatenate(part) for part in rows)
    return Predicted(truth, dense, slim, view.unit)


def _columns(values: np.ndarray) -> np.ndarray:
    """`(n, n_columns)` float64."""
    found = values.astype(np.float64)
    found = found.reshape(len(found), 1) if found.ndim == 1 else found.reshape(*found.shape[:2], -1).mean(axis=2)
    return np.asarray(found)


def _masks(task: Task, data: DataSource, pair: Pair, furthest: np.ndarray) -> Answers | None:
    """The images that changed most, and as many that changed as usual; None where masks are no pictures."""
    from edgeprune.report.answers import Masks

    usual = furthest[len(furthest) // 2 :]
    chosen = list(dict.fromkeys([*furthest[: _PICTURES // 2].tolist(), *usual[: _PICTURES // 2].tolist()]))
    if len(data.targets.shape) != 2 or (data.inputs and not any(len(info.shape) == 3 for info in data.inputs)):
        return None
    images = tuple(_image(task, data, pair, index) for index in chosen)
    return Masks(images, tuple(data.classes), task.ignore if isinstance(task, Segmentation) else None)


def _image(task: Task, data: DataSource, pair: Pair, index: int) -> MaskedImage:
    from edgeprune.report.answers import MaskedImage

    dense, slim, raw = pair.answers(data, np.array([index]))
    x, _ = next(read(data.test, [torch.tensor([index])]))
    masks = [classes_of(to_array(leaves(outputs)[0][1]))[0] for outputs in (dense, slim)]
    return MaskedImage(index, _picture(x), to_array(task.targets(raw))[0], *masks)


def _picture(x: Inputs) -> np.ndarray:
    """The image `(channels, height, width)` of a batch of one sample; of several inputs it is the first image."""
    images = [x] if isinstance(x, torch.Tensor) else [one for one in x.values() if one.dim() == 4]
    picture: np.ndarray = images[0][0].numpy()
    return picture
