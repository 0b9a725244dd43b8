"""Data from the user's own Python file: `path/file.py:factory`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.data.arrays import Pair, from_arrays, named_source, pairs
from edgeprune.data.featurenames import class_names, expanded, is_beside, lone_names
from edgeprune.data.namedarrays import NamedPart, from_named, is_named
from edgeprune.data.usersplit import described, guarded
from edgeprune.errors import InputError
from edgeprune.records import DataSource
from edgeprune.tasks.wanted import WantedTargets
from edgeprune.usercode import RandomStateKept, calling_user_code
from edgeprune.userfile import literal, load_function

_SPLITS = ("train", "val", "test")


def open_factory(
    file: str, function: str, options: Mapping[str, str], seed: int, wanted: WantedTargets | None = None
) -> DataSource:
    """Call the factory with `options` (read as Python literals, else as strings), and with `seed` if it takes one.

    It returns a DataSource; or (x, y) arrays of train, val and test as a tuple of three pairs or as a dict; or
    one pair, which is cut 60/20/20; or x alone, without targets; or a dict named as in an .npz file. A dict may have
    `class_names` and `feature_names` too. Where a network has named inputs, x is a dict of arrays by their names, and
    `feature_names` of several inputs are a dict of such by input.
    """
    where = f"{file}:{function}"
    factory = load_function(Path(file), function)
    arguments = {key: literal(value) for key, value in options.items()}
    with calling_user_code(f"{where}: the factory raised"), RandomStateKept():
        if "seed" in inspect.signature(factory).parameters:
            arguments.setdefault("seed", seed)
        made = expanded(factory(**arguments))
        if isinstance(made, DataSource):
            return _checked(guarded(described(made), where), where)
        if _is_named_dict(made, wanted):
            return named_source(where, {str(key): _array(value) for key, value in made.items()}, where, wanted)
        named = _by_inputs(made)
        if named is not None:
            return from_named(where, named, class_names(_beside(made), where), wanted, _beside(made))
        parts, names = _parts(made, where), _beside(made)
    return from_arrays(where, parts, class_names(names, where), lone_names(names, where), wanted)


def _is_named_dict(made: Any, wanted: WantedTargets | None) -> bool:
    """Whether it holds arrays by the names of inputs, as an .npz file does."""
    return isinstance(made, Mapping) and not any(key in made for key in _SPLITS) and is_named(map(str, made), wanted)


def _by_inputs(made: Any) -> dict[str, NamedPart] | None:
    """Split name -> its samples, where x is a dict of inputs in what a factory returned; None where it is none."""
    parts = _split_parts(made)
    return (
        {key: _named_part(part) for key, part in parts.items()}
        if parts and all(map(_is_named, parts.values()))
        else None
    )


def _split_parts(made: Any) -> dict[str, Any]:
    """What a factory returned by split, "all" where it says none; nothing of another kind."""
    if isinstance(made, Mapping):
        return (
            {str(key): part for key, part in made.items() if not is_beside(str(key))}
            if set(_SPLITS) & set(made)
            else {}
        )
    if not isinstance(made, tuple | list):
        return {}
    return dict(zip(_SPLITS, made, strict=True)) if len(made) == 3 else {"all": made}


def _is_named(part: Any) -> bool:
    """Whether it is a dict of inputs, alone or with targets beside."""
    return isinstance(part[0] if isinstance(part, tuple | list) and len(part) == 2 else part, Mapping)


def _named_part(part: Any) -> NamedPart:
    inputs, y = part if isinstance(part, tuple | list) else (part, None)
    arrays = {str(key): _array(value) for key, value in inputs.items()}
    y = arrays.pop("y", None) if y is None else _array(y)
    return NamedPart(arrays, y)


def _parts(made: Any, where: str) -> dict[str, Pair]:
    """Split name -> (x, y), or (x, None) without targets, from what a factory returned."""
    made = _named(made)
    if not isinstance(made, Mapping):
        raise InputError(
            f"{where}: expected a DataSource, (x, y) arrays, or those of train, val and test; got {type(made).__name__}"
        )
    if not any(key in made for key in _SPLITS):
        return pairs({str(key).lower(): _array(value) for key, value in made.items()}, where)
    parts = {key: part for key, part in made.items() if not is_beside(str(key))}
    for key in parts:
        if key not in _SPLITS or not _is_part(parts[key]):
            raise InputError(f"{where}: expected (x, y) arrays under train, val and test, got {key!r}")
    return {key: _arrays(part) for key, part in parts.items()}


def _named(made: Any) -> Any:
    """Arrays without names as a mapping: three parts are train, val and test, one is x and y or x alone."""
    if isinstance(made, tuple | list) and len(made) == 3 and all(_is_part(part) for part in made):
        return dict(zip(_SPLITS, made, strict=True))
    if _is_pair(made):
        return {"x": made[0], "y": made[1]}
    return {"x": made} if isinstance(made, np.ndarray | torch.Tensor) else made


def _beside(made: Any) -> dict[str, Any]:
    """The names of classes and features, where the factory returned a dict that has them."""
    return {str(key): made[key] for key in made if is_beside(str(key))} if isinstance(made, Mapping) else {}


def _is_pair(value: Any) -> bool:
    arrays = (np.ndarray, torch.Tensor)
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(part, arrays) for part in value)


def _is_part(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) or _is_pair(value)


def _arrays(part: Any) -> Pair:
    """The (x, y) of a split, or x alone."""
    return (_array(part[0]), _array(part[1])) if _is_pair(part) else (_array(part), None)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _checked(made: DataSource, where: str) -> DataSource:
    """Raise InputError when a DataSource's splits are empty or do not hold what it says."""
    for name in ("train", "val", "test"):
        split = getattr(made, name)
        if len(split) == 0:
            raise InputError(f"{where}: the {name} split is empty; expected at least one sample")
        if made.inputs:
            split[0]  # which is checked as it is read
            continue
        shape = tuple(torch.as_tensor(split[0][0]).shape)
        if shape != tuple(made.input_shape):
            raise InputError(f"{where}, {name}: expected samples of shape {tuple(made.input_shape)}, got {shape}")
    return made
