"""How much the samples of each class count in the loss: rare classes more, or as the user says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from edgeprune.errors import InputError
from edgeprune.lines import one_line, shown
from edgeprune.reading import parse_json, read_json
from edgeprune.records import DataSource

_WORDS = ("balanced", "none")
_WANTED = 'balanced, none or {"class": number, ...}'
_TASK = "classification"


def with_class_weights(spec: str | None, asked: str | None) -> str | None:
    """A task's spec with class weights as `--class-weights` asks for them; a file's are written into it.

    Example: of `"classification?metric=balanced-accuracy"` and `"balanced"` it is
    `"classification?metric=balanced-accuracy&weights=balanced"`.

    Raises:
        InputError: another task than a classification; a file that is no JSON object of numbers.
    """
    if asked is None:
        return spec
    head, _, query = (spec or _TASK).partition("?")
    if head != _TASK:
        raise InputError(f"--class-weights: expected the task {_TASK}, got {one_line(head, 60)}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if asked == "none":
        options.pop("weights", None)
    else:
        options["weights"] = asked if asked in _WORDS else _inline(Path(asked))
    return f"{head}?{urlencode(options)}" if options else head


def weights_of(text: str, data: DataSource) -> tuple[float, ...] | None:
    """The weight of each class, in the order of `data.classes`; over the train split their mean is 1.

    Balanced ones are `n_samples / (n_classes * n_samples_of_the_class)`, of the classes that have samples.

    Raises:
        InputError: neither a word that is known nor numbers above 0, one for each class of the data.
    """
    if text == "none":
        return None
    stated = None if text == "balanced" else _stated(text, data)
    counts = class_counts(data)
    if stated is None:
        stated = np.where(counts > 0, 1.0 / np.maximum(counts, 1), 0.0)
    mean = float((counts * stated).sum()) / float(counts.sum())
    # A class without samples in train weighs as one of the mean: no gradient comes of it.
    return tuple(float(weight) for weight in np.where(counts > 0, stated / mean, 1.0))


def class_counts(data: DataSource) -> np.ndarray:
    """How many samples of train each class has, int64 `(n_classes,)`.

    Raises:
        InputError: labels of no class.
    """
    held = getattr(data.train, "labels", None)
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "iub" or held.size != len(data.train):  # type: ignore[arg-type]
        held = _read(data.train)
    labels = np.asarray(held).reshape(-1).astype(np.int64)
    if not len(labels) or labels.min() < 0 or labels.max() >= len(data.classes):
        raise InputError(f"data {data.name}: expected labels from 0 to {len(data.classes) - 1} in train, to weigh them")
    return np.bincount(labels, minlength=len(data.classes))


def _read(split: Any) -> list[int]:
    """The labels of a split that does not hold them apart: every sample is read."""
    return [int(split[index][1]) for index in range(len(split))]


def _inline(path: Path) -> str:
    found = read_json(path, "weights")
    _check_numbers(found, f"{path}: expected a JSON object of numbers above 0 by class")
    return json.dumps(found, separators=(",", ":"))


def _stated(text: str, data: DataSource) -> np.ndarray:
    where = f"class weights: expected {_WANTED}"
    if not text.startswith("{"):
        raise InputError(f"{where}, got {shown(text, 60)}")
    found = parse_json(text, where)
    _check_numbers(found, where)
    missing = [name for name in data.classes if name not in found]
    unknown = sorted(set(found) - set(data.classes))
    if missing or unknown:
        what = f"none of {shown(missing[0], 60)}" if missing else f"also {shown(unknown[0], 60)}"
        raise InputError(f"class weights: expected one for each class of data {data.name}, got {what}")
    return np.array([float(found[name]) for name in data.classes])


def _check_numbers(found: Any, where: str) -> None:
    if not isinstance(found, Mapping):
        raise InputError(f"{where}, got {shown(found, 60)}")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e9:
            raise InputError(f"{where}, got {shown(value, 60)} for {shown(name, 60)}")
        assert math.isfinite(value)
