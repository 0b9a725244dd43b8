"""From `--task`, or from what the data are, to a task."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from edgeprune.errors import InputError
from edgeprune.records import DataSource, TargetKind
from edgeprune.tasks.balanced import BalancedClassification
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.match import Match
from edgeprune.tasks.multilabel import Multilabel
from edgeprune.tasks.regression import Regression
from edgeprune.tasks.segmentation import IGNORED, Segmentation
from edgeprune.tasks.task import Task
from edgeprune.tasks.usertask import UserTask
from edgeprune.tasks.wanted import WantedTargets
from edgeprune.tasks.weights import weights_of
from edgeprune.usercode import RandomStateKept, calling_user_code
from edgeprune.userfile import literal, load_function

_FACTORY = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
WHAT = {
    "classes": "class labels",
    "values": "floats",
    "flags": "rows of 0 and 1",
    "masks": "masks",
    "none": "none",
    "other": "something of its own",
}
# Task -> what its targets are.
TARGETS: Mapping[str, TargetKind] = {
    "classification": "classes",
    "multilabel": "flags",
    "regression": "values",
    "segmentation": "masks",
    "match": "none",
}
_CLASSIFICATIONS = {"accuracy": Classification, "balanced-accuracy": BalancedClassification}
_DEFAULTS: Mapping[TargetKind, str] = {kind: name for name, kind in TARGETS.items()}
KNOWN = f"{', '.join(TARGETS)} or path/file.py:factory"


def _classification(data: DataSource, options: Mapping[str, str]) -> Task:
    metric = options.get("metric", "accuracy")
    if metric not in _CLASSIFICATIONS:
        raise InputError(f"task classification: expected ?metric={' or '.join(_CLASSIFICATIONS)}, got {metric[:40]!r}")
    return _CLASSIFICATIONS[metric](len(data.classes) or None, weights_of(options.get("weights", "none"), data))


def _segmentation(data: DataSource, options: Mapping[str, str]) -> Task:
    return Segmentation(_ignored_value(options), len(data.classes) or None)


_BUILDERS: Mapping[str, tuple[Callable[[DataSource, Mapping[str, str]], Task], tuple[str, ...]]] = {
    "classification": (_classification, ("metric", "weights")),
    "multilabel": (lambda data, options: Multilabel(), ()),
    "regression": (lambda data, options: Regression(data.targets.spread or (1.0,), options.get("unit", "")), ("unit",)),
    "segmentation": (_segmentation, ("ignore",)),
    "match": (lambda data, options: Match(), ()),
}


def open_task(spec: str | None, data: DataSource) -> Task:
    """The task that `spec` names, else the one that the targets of the data call for.

    Example: `segmentation?ignore=0`, `regression?unit=mmol`, `tasks.py:detection?iou=0.5`.

    Raises:
        InputError: an unknown task or option, targets that the task does not take, or a file that makes no task.
    """
    if spec is None:
        if data.targets.kind not in _DEFAULTS:
            raise InputError(
                f"data {data.name}: expected a task for targets of its own, path/file.py:factory, got none"
            )
        return open_task(_DEFAULTS[data.targets.kind], data)
    head, options = _parsed(spec)
    match = _FACTORY.fullmatch(head)
    if match:
        return _users(os.path.expanduser(match["file"]), match["function"], options, data)
    _check_known(spec, head, options)
    if head != "match" and data.targets.kind != TARGETS[head]:
        wanted, got = WHAT[TARGETS[head]], WHAT[data.targets.kind]
        raise InputError(f"task {head}: expected {wanted} as targets, got {got} in data {data.name}")
    return _BUILDERS[head][0](data, options)


def is_own(spec: str) -> bool:
    """Whether a file of the user's is run for it; so is whatever else is no name of a task."""
    return spec.partition("?")[0] not in TARGETS


def kind_of(task: Task) -> TargetKind:
    """What the targets of a task are; "other" for one of the user's."""
    return TARGETS.get(task.name, "other")


def judges_classes(spec: str | None, data: DataSource) -> bool:
    """Whether the task is classification, by its name or by the targets."""
    kind = data.targets.kind if spec is None else TARGETS.get(spec.partition("?")[0])
    return kind == "classes"


def wanted_targets(spec: str | None, inputs: tuple[str, ...] = ()) -> WantedTargets:
    """What the targets of the data are to be read as for a task, and what their inputs are called.

    Raises:
        InputError: an unknown task or option.
    """
    if spec is None:
        return WantedTargets(inputs=inputs)
    head, options = _parsed(spec)
    if _FACTORY.fullmatch(head):
        return WantedTargets(inputs=inputs)
    _check_known(spec, head, options)
    return WantedTargets(TARGETS[head], _ignored_value(options), inputs, ignore_asked="ignore" in options)


def _ignored_value(options: Mapping[str, str]) -> int | None:
    """The value of masks that counts nowhere, from `ignore=N` or `ignore=none`."""
    text = options.get("ignore", str(IGNORED))
    if text == "none":
        return None
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise InputError(f"task segmentation: expected ?ignore= with a whole number or none, got {text[:40]!r}")
    return int(text)


def _parsed(spec: str) -> tuple[str, dict[str, str]]:
    head, _, query = spec.partition("?")
    try:
        return head, dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise InputError(f"task {spec!r}: expected key=value&key=value after '?', got {query!r}") from None


def _check_known(spec: str, head: str, options: Mapping[str, str]) -> None:
    if head not in _BUILDERS:
        raise InputError(f"task: expected {KNOWN}; got {spec!r}")
    known = _BUILDERS[head][1]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"task {spec!r}: expected options {', '.join(known) or '(none)'}, got {unknown[0]!r}")


def _users(file: str, function: str, options: Mapping[str, str], data: DataSource) -> Task:
    """What a function of the user's makes, of `options` (read as Python literals) and of the data, if it takes them."""
    factory, where = load_function(Path(file), function), f"{file}:{function}"
    arguments: dict[str, Any] = {key: literal(value) for key, value in options.items()}
    with calling_user_code(f"{where}: the factory raised"), RandomStateKept():
        if "data" in inspect.signature(factory).parameters:
            arguments.setdefault("data", data)
        made = factory(**arguments)
    return UserTask(made, where)
