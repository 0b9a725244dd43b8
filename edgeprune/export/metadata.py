"""What an ONNX file of an export says of itself: entries `edgeprune.*` of its metadata, written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.front import Preprocessing, feature_scaling
from edgeprune.lines import shown
from edgeprune.reading import parse_json
from edgeprune.records import IDENTITY, ModelInfo, Normalization
from edgeprune.tasks.registry import is_own


def metadata_of(info: ModelInfo, contract: str, front: Preprocessing, folded: bool = False) -> dict[str, str]:
    """ONNX metadata: the contract (`full`, `slim` or `preprocess`) and what is known of the file's own input.

    Of the slim contract, shape and normalisation are those of the features that `front` keeps. With the front folded
    in, the file takes raw inputs: the normalisation left to do is none (mean 0, std 1), what was folded is told apart,
    and `edgeprune.byte_scale` says what a byte stands for.
    """
    is_narrower = contract == "slim" and front.features is not None
    shape, normalization = _slim_input(front) if is_narrower else (front.shape, front.normalization)
    entries: dict[str, Any] = {"input_shape": list(shape)}
    if info.classes:
        entries["classes"] = list(info.classes)
    entries |= _task(info, contract)
    if normalization is not None:
        entries["normalization"] = _numbers(normalization)
    if folded:
        entries["folded_normalization"] = _numbers(normalization or IDENTITY)
        entries["normalization"] = _numbers(IDENTITY)
        entries["preprocess"] = "folded"
        if front.byte_scale is not None:
            entries["byte_scale"] = front.byte_scale
    return {"edgeprune.contract": contract, **{f"edgeprune.{key}": json.dumps(value) for key, value in entries.items()}}


def metadata_of_named(info: ModelInfo, scaling: Mapping[str, Any], folded: bool) -> dict[str, str]:
    """The same of a network with several inputs: `scaling` is what is left to do to each by its name."""
    entries: dict[str, Any] = {"classes": list(info.classes)} if info.classes else {}
    entries |= _task(info, "full")
    if scaling:
        entries["normalizations"] = dict(scaling)
    if folded:
        entries["preprocess"] = "folded"
    return {"edgeprune.contract": "full", **{f"edgeprune.{key}": json.dumps(value) for key, value in entries.items()}}


def _task(info: ModelInfo, contract: str) -> dict[str, str]:
    """The task of a network; one that is the user's code is none of the device's business."""
    stated = info.task is not None and not is_own(info.task) and contract != "preprocess"
    return {"task": str(info.task)} if stated else {}


def _slim_input(front: Preprocessing) -> tuple[tuple[int, ...], Normalization | None]:
    """Shape without the batch of what holds only the kept features, and mean and std of each of them."""
    features = front.features
    assert features is not None
    shape = (len(features.keep), *(front.shape[1:] if features.dim == 1 else ()))
    if front.normalization is None:
        return shape, None
    mean, std = feature_scaling(front)
    return shape, Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def _numbers(normalization: Normalization) -> dict[str, list[float]]:
    return {
        "mean": [float(value) for value in normalization.mean],
        "std": [float(value) for value in normalization.std],
    }


def normalization_in(metadata: Mapping[str, str], where: str) -> Normalization | None:
    """The normalisation that a file states, or None.

    Raises:
        InputError: the entry is malformed; `where` names the file.
    """
    text = metadata.get("edgeprune.normalization")
    if text is None:
        return None
    expected = f"{where}: edgeprune.normalization: expected lists mean and std"
    entry = parse_json(text, expected)
    try:
        mean, std = (tuple(float(value) for value in entry[key]) for key in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{expected}, got {shown(text, 80)}") from error
    if not mean or not std or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise InputError(f"{expected} of finite values, std above 0, got {shown(text, 80)}")
    return Normalization(mean, std)


def task_in(metadata: Mapping[str, str], where: str) -> str | None:
    """The task that a file states, or None; raises InputError where the entry is malformed."""
    text = metadata.get("edgeprune.task")
    if text is None:
        return None
    expected = f"{where}: edgeprune.task: expected the name of a task"
    stated = parse_json(text, expected)
    if not isinstance(stated, str) or not stated:
        raise InputError(f"{expected}, got {shown(text, 80)}")
    return stated


def byte_scale_in(metadata: Mapping[str, str], where: str) -> float | None:
    """What a byte that a file takes is multiplied by to be a raw input, or None where it takes floats.

    Raises:
        InputError: the entry is malformed; `where` names the file.
    """
    text = metadata.get("edgeprune.byte_scale")
    if text is None:
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"{where}: edgeprune.byte_scale: expected a number above 0, got {shown(text, 80)}")
    return scale
