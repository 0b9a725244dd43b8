"""A model's own account of itself (`ModelInfo`) as plain fields: edgeprune.json in a .pt2, entries of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import NoneType
from typing import Any

from edgeprune.catalog import RECIPE, names
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.records import ModelInfo, Normalization
from edgeprune.settings import Recipe, TrainSettings

INFO_FILE = "edgeprune.json"
CHECKPOINT_FORMAT = "edgeprune-checkpoint/1"
_MAX_INTEGER = 2**63
_MAX_DIMS = 16
_MAX_INPUT = 2**28  # elements of one input
_MAX_TEXT = 4096  # characters
_MAX_INPUTS = 1024


def info_to_dict(info: ModelInfo) -> dict[str, Any]:
    """The record as plain lists, numbers and strings, for JSON and the weights-only loader."""
    fields = asdict(info)
    for name in ("input_shape", "classes", "feature_names"):
        fields[name] = list(fields[name])
    fields["feature_groups"] = {name: list(members) for name, members in info.feature_groups}
    if info.training is not None:
        fields["training"] = info.training.as_plain
    fields["input_feature_names"] = {name: list(names) for name, names in info.input_feature_names}
    for name in ("task", "input_feature_names"):  # as files were before there were such
        if not fields[name]:
            del fields[name]
    if info.normalization is not None:
        fields["normalization"] = _scaling(info.normalization)
    return fields


def _scaling(normalization: Normalization) -> dict[str, Any]:
    own: dict[str, Any] = {"mean": list(normalization.mean), "std": list(normalization.std)}
    if normalization.dim != 1:  # as files were before there were others
        own["dim"] = normalization.dim
    inputs = {name: _scaling(one) for name, one in normalization.inputs}
    return {**own, "inputs": inputs} if inputs else own


def info_from_dict(value: Any) -> ModelInfo:
    """The inverse of `info_to_dict`; InputError where a field is of another kind."""
    if not isinstance(value, Mapping):
        raise InputError(f"model info: expected fields by name, got a {type(value).__name__}")
    normalization = value.get("normalization")
    return ModelInfo(
        input_shape=_sizes(value.get("input_shape")),
        arch=_text(value, "arch"),
        classes=_texts(value, "classes"),
        normalization=None if normalization is None else _normalization(normalization),
        data=_text(value, "data"),
        feature_names=_texts(value, "feature_names"),
        training=_training(value.get("training")),
        module=_text(value, "module"),
        feature_groups=_groups(value.get("feature_groups") or {}),
        task=_text(value, "task"),
        input_feature_names=_names_by_input(value.get("input_feature_names") or {}),
    )


def _names_by_input(value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if not isinstance(value, Mapping) or len(value) > _MAX_INPUTS or not all(map(_is_text, value)):
        raise InputError(f"model info: expected input_feature_names by input, got {shown(value, 80)}")
    return tuple((name, _short_texts(names, f"input_feature_names of {name}")) for name, names in value.items())


def _groups(value: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    lists = isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(members, (list, tuple)) for name, members in value.items()
    )
    if not lists or not all(type(index) is int and index >= 0 for members in value.values() for index in members):
        raise InputError(f"model info: expected feature_groups as lists of numbers by name, got {str(value)[:60]}")
    return tuple((name, tuple(members)) for name, members in value.items())


def _training(value: Any) -> TrainSettings | None:
    """How the model was trained; every field has to be of its kind, and a number finite."""
    if value is None:
        return None
    kinds: dict[str, tuple[type, ...]] = {
        "epochs": (int,), "optimizer": (str,), "lr": (int, float, NoneType), "weight_decay": (int, float, NoneType),
        "batch_size": (int,), "seed": (int,), "threads": (int, NoneType), "best_from": (int, float),
    }  # fmt: skip
    # Files of earlier versions lack these.
    later: dict[str, tuple[type, ...]] = {
        "accumulate": (int,), "precision": (str,), "channels_last": (bool,), "workers": (int,), "device": (str,),
        "schedule": (str, NoneType), "options": (dict,), "method": (str, NoneType),
        "recipe": (dict,),
    }  # fmt: skip
    if not isinstance(value, Mapping) or not set(kinds) <= set(value) <= set(kinds | later):
        raise InputError(f"model info: expected training with {', '.join(kinds | later)}, got {shown(value)}")
    for name, number in value.items():
        fits = type(number) in (kinds | later)[name] and _in_range(number)
        if not fits or (name == "options" and not all(map(_is_option, number.items()))):
            raise InputError(f"model info: expected training's {name} in its range, got {shown(number)}")
    if value["optimizer"] not in names("optimizer"):
        raise InputError(f"model info: expected training's optimizer to be known, got {shown(value['optimizer'])}")
    if value.get("method") is not None and value["method"] not in names("method"):
        raise InputError(f"model info: expected training's method to be known, got {shown(value['method'])}")
    return TrainSettings(**{**value, "recipe": _recipe(value.get("recipe", {}))})


def _recipe(value: Mapping[str, Any]) -> Recipe:
    known = {name: option for name, option in value.items() if name in RECIPE}
    recipe = Recipe(**known)
    if len(known) < len(value):
        raise InputError(f"model info: expected a recipe with {', '.join(RECIPE)}, got {shown(value)}")
    try:
        recipe.check()
    except InputError as error:
        raise InputError(f"model info: training's recipe: {error}") from error
    return recipe


def _in_range(value: Any) -> bool:
    return not isinstance(value, (int, float)) or 0 <= value < (math.inf if isinstance(value, float) else _MAX_INTEGER)


def _is_option(item: tuple[Any, Any]) -> bool:
    name, value = item
    return type(name) is str and type(value) in (int, float, str) and _in_range(value)


def _sizes(value: Any) -> tuple[int, ...]:
    fits = isinstance(value, (list, tuple)) and all(type(size) is int and size > 0 for size in value)
    if not fits or len(value) > _MAX_DIMS or math.prod(value) > _MAX_INPUT:
        raise InputError(f"model info: expected input_shape as sizes above 0, 2**28 in all, got {shown(value)}")
    return tuple(value)


def _is_text(value: Any) -> bool:
    """Of bearable length, and without halves of surrogate pairs, which neither a file nor a picture takes."""
    return isinstance(value, str) and len(value) <= _MAX_TEXT and value.encode(errors="ignore").decode() == value


def _text(value: Mapping[str, Any], name: str) -> str | None:
    text = value.get(name)
    if text is not None and not _is_text(text):
        raise InputError(f"model info: expected {name} as a short text, got {shown(text)}")
    return text


def _texts(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return _short_texts(value.get(name) or (), name)


def _short_texts(texts: Any, name: str) -> tuple[str, ...]:
    if not isinstance(texts, (list, tuple)) or not all(map(_is_text, texts)):
        raise InputError(f"model info: expected {name} as a list of short texts, got {shown(texts)}")
    return tuple(texts)


def _normalization(value: Any) -> Normalization:
    """One mean and std, and those of inputs by name."""
    own = _mean_and_std(value)
    inputs = value.get("inputs") or {}
    if not isinstance(inputs, Mapping) or len(inputs) > _MAX_INPUTS or not all(map(_is_text, inputs)):
        raise InputError(f"model info: expected normalization's inputs by name, got {shown(inputs, 80)}")
    return replace(own, inputs=tuple((name, _mean_and_std(one)) for name, one in inputs.items()))


def _mean_and_std(value: Any) -> Normalization:
    try:
        mean, std = (tuple(float(number) for number in value[name]) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"model info: expected normalization with mean and std, got {shown(value)}") from error
    fits = bool(mean and std) and (len(mean) == len(std) or 1 in (len(mean), len(std)))
    if not fits or not all(map(math.isfinite, mean + std)) or not all(number > 0 for number in std):
        raise InputError(f"model info: expected finite means and stds above 0, got {shown(value, 80)}")
    dim = value.get("dim", 1)
    if type(dim) is not int or not 1 <= dim <= _MAX_DIMS:
        raise InputError(f"model info: expected normalization's dim as a number from 1, got {shown(dim)}")
    return Normalization(mean, std, dim=dim)
