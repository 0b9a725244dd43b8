"""What an ONNX file of an export says of itself: entries `edgeprune.*` of its metadata, written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.front import Preprocessing, feature_scaling, numbers_of
from edgeprune.export.namedfront import NamedFront
from edgeprune.graph.inputs import slim_shape
from edgeprune.lines import shown
from edgeprune.reading import parse_json
from edgeprune.records import IDENTITY, ModelInfo, Normalization
from edgeprune.tasks.registry import is_own

_UNSEEN = 1e-6  # of a std: what an input may move by where its mean is told shorter


def metadata_of(info: ModelInfo, contract: str, front: Preprocessing, folded: bool = False) -> dict[str, str]:
    """ONNX metadata: the contract (`full`, `slim`, `preprocess` or `sound`) and what is known of the file's own input.

    Of the slim contract, shape and normalisation are those of the features that `front` keeps. With the front folded
    in, the file takes raw inputs: the normalisation left to do is none (mean 0, std 1), what was folded is told apart,
    and `edgeprune.byte_scale` says what a byte stands for.
    """
    is_narrower = contract == "slim" and front.features is not None
    shape, normalization = slim_input(front) if is_narrower else (front.shape, front.normalization)
    entries = {"input_shape": list(shape), **_common(info, contract)}
    if normalization is not None:
        entries["normalization"] = _shortened(numbers_of(normalization))
    if folded:
        entries["folded_normalization"] = _shortened(numbers_of(normalization or IDENTITY))
        entries["normalization"] = numbers_of(IDENTITY)
        entries["preprocess"] = "folded"
        if front.byte_scale is not None:
            entries["byte_scale"] = front.byte_scale
    return _entries(contract, entries)


def metadata_of_named(info: ModelInfo, contract: str, front: NamedFront) -> dict[str, str]:
    """The same of a network with several inputs: what is left to do to each, or is folded in, by its name."""
    entries = _common(info, contract)
    if contract != "preprocess":
        numbers = {"normalizations": front.told(contract), "folded_normalizations": front.told_folded(contract)}
        entries |= {
            key: {name: _shortened(own) for name, own in by_name.items()} for key, by_name in numbers.items() if by_name
        }
    if front.fold:
        entries |= {"preprocess": "folded", "byte_scales": front.byte_scales()}
    return _entries(contract, entries)


def _common(info: ModelInfo, contract: str) -> dict[str, Any]:
    """What is known of the network, whatever its inputs are."""
    entries: dict[str, Any] = {"classes": list(info.classes)} if info.classes else {}
    if info.task is not None and not is_own(info.task) and contract != "preprocess":
        entries["task"] = info.task  # code of the user's is none of the device's business
    return entries


def _entries(contract: str, entries: Mapping[str, Any]) -> dict[str, str]:
    return {"edgeprune.contract": contract, **{f"edgeprune.{key}": json.dumps(value) for key, value in entries.items()}}


def _shortened(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and std by the shortest decimals that read back to the same float32, as networks take them.

    E.g. 0.1307 for 0.13070000052452087. Where a mean lies so far from 0 that this would move what is normalised, in
    float64, by more than a float32 tells apart, all of its digits stay.
    """
    std = np.asarray(numbers["std"], np.float64)
    told = {}
    for key in ("mean", "std"):
        values = np.asarray(numbers[key], np.float64)
        short = np.array([_shortest(value) for value in values])
        unseen = _UNSEEN * (std if len(std) == len(values) else std.min())
        told[key] = np.where(np.abs(short - values) <= unseen, short, values).tolist()
    return {**numbers, **told}


def _shortest(value: float) -> float:
    """The float64 of the shortest decimal that is the same float32; infinite where a float32 is."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def slim_input(front: Preprocessing) -> tuple[tuple[int, ...], Normalization | None]:
    """Shape without the batch of what holds only the kept features, and mean and std of each of them."""
    features = front.features
    assert features is not None
    return slim_shape(front.shape, features), None if front.normalization is None else feature_scaling(front)


def normalization_in(metadata: Mapping[str, str], where: str) -> Normalization | None:
    """The normalisation that a file states, or None.

    Raises:
        InputError: the entry is malformed; `where` names the file.
    """
    text = metadata.get("edgeprune.normalization")
    if text is None:
        return None
    expected = f"{where}: edgeprune.normalization: expected lists mean and std"
    return _read_numbers(parse_json(text, expected), expected, text)


def named_normalization_in(metadata: Mapping[str, str], where: str) -> Normalization | None:
    """The same of a file with several inputs, for each of them; None where it says nothing of any.

    An input whose scaling is folded in is left as it is, as is one that nothing is said of.
    """
    found = _by_name(metadata, "normalizations", where)
    if found or "edgeprune.preprocess" in metadata:
        return Normalization(IDENTITY.mean, IDENTITY.std, tuple(found.items()))
    return None


def folded_normalization_in(metadata: Mapping[str, str], where: str) -> Normalization | None:
    """What a file with several inputs does to them by itself; None where it says nothing of that."""
    found = _by_name(metadata, "folded_normalizations", where)
    return Normalization(IDENTITY.mean, IDENTITY.std, tuple(found.items())) if found else None


def _by_name(metadata: Mapping[str, str], key: str, where: str) -> dict[str, Normalization]:
    text = metadata.get(f"edgeprune.{key}", "{}")
    expected = f"{where}: edgeprune.{key}: expected lists mean and std by input"
    entries = parse_json(text, expected)
    if not isinstance(entries, dict):
        raise InputError(f"{expected}, got {shown(text, 80)}")
    return {name: _read_numbers(entry, expected, text) for name, entry in entries.items()}


def _read_numbers(entry: Any, expected: str, text: str) -> Normalization:
    try:
        mean, std = (tuple(float(value) for value in entry[key]) for key in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{expected}, got {shown(text, 80)}") from error
    if not mean or not std or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise InputError(f"{expected} of finite values, std above 0, got {shown(text, 80)}")
    dim = entry.get("dim", 1)
    if type(dim) is not int or dim < 1:
        raise InputError(f"{expected} and a dim from 1, got {shown(text, 80)}")
    return Normalization(mean, std, dim=dim)


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


def feature_dims_entry(dims: Mapping[str, int]) -> dict[str, str]:
    """The entry that says along which dim of the batch the features of each input lie; none where nothing is known."""
    return {"edgeprune.feature_dims": json.dumps(dict(dims))} if dims else {}


def feature_dims_in(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """What that entry says by input, which is still to be held against the inputs' shapes.

    Raises:
        InputError: the entry is malformed; `where` names the file.
    """
    expected = f"{where}: edgeprune.feature_dims: expected dims by input"
    text = metadata.get("edgeprune.feature_dims", "{}")
    entries = parse_json(text, expected)
    if not isinstance(entries, dict):
        raise InputError(f"{expected}, got {shown(text, 80)}")
    return entries


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
    return _scale(scale, f"{where}: edgeprune.byte_scale", text)


def byte_scales_in(metadata: Mapping[str, str], where: str) -> dict[str, float]:
    """The same of a file with several inputs, for each that takes bytes."""
    text = metadata.get("edgeprune.byte_scales", "{}")
    told = f"{where}: edgeprune.byte_scales"
    entries = parse_json(text, f"{told}: expected numbers by input")
    if not isinstance(entries, dict):
        raise InputError(f"{told}: expected numbers by input, got {shown(text, 80)}")
    return {name: _scale(value, told, text) for name, value in entries.items()}


def _scale(value: Any, told: str, text: str) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"{told}: expected a number above 0, got {shown(text, 80)}")
    return number
