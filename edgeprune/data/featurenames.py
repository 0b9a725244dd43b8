"""The names of features that stand beside arrays: those of the only input, or of each of several by its name.

npz       feature_names                       feature_names_series, feature_names_table
factory   {"feature_names": [...]}            {"feature_names": {"series": [...], "table": [...]}}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.records import InputInfo

CLASSES, FEATURES = "class_names", "feature_names"
_OF = f"{FEATURES}_"


def is_beside(key: str) -> bool:
    """Whether an array of this name holds the names of classes or features, rather than samples."""
    return key.lower() in (CLASSES, FEATURES) or key.lower().startswith(_OF)


def expanded(made: Any) -> Any:
    """What a factory returned, a dict of names by input under `feature_names` as an entry for each input."""
    own = made.get(FEATURES) if isinstance(made, Mapping) else None
    if not isinstance(own, Mapping):
        return made
    rest = {key: value for key, value in made.items() if key != FEATURES}
    return {**rest, **{f"{_OF}{name}": names for name, names in own.items()}}


def class_names(arrays: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Those of the classes; empty without them; errors as `texts`."""
    return _found(arrays, CLASSES, where)


def lone_names(arrays: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Those of the features of a lone `x`; empty without them; errors as `texts`."""
    return _found(arrays, FEATURES, where) or _found(arrays, f"{_OF}x", where)


def _found(arrays: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    return next((texts(value, key, where) for name, value in arrays.items() if name.lower() == key), ())


def texts(names: Any, key: str, where: str) -> tuple[str, ...]:
    """An array of names as they are.

    Raises:
        InputError: they are no list of texts, or hold one twice.
    """
    array = np.asarray(names)
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise InputError(f"{where}: expected {key} as texts (n,), got {array.dtype} {array.shape}")
    found = tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in array.tolist())
    counts = Counter(found)
    twice = next((name for name in found if counts[name] > 1), None)
    if twice is not None:
        raise InputError(f"{where}: expected each of {key} once, got {twice[:60]!r} more often")
    return found


def with_names(infos: Sequence[InputInfo], arrays: Mapping[str, Any], where: str) -> tuple[InputInfo, ...]:
    """The inputs with the names of their features, and along which dim these lie where the names tell it.

    Args:
        infos: the inputs.
        arrays: what stands beside them; of it, `feature_names` of the only input and `feature_names_NAME` are read.
        where: how an error begins.

    Raises:
        InputError: names of which nobody says whose they are, of another number, or as for `texts`.
    """
    found = {key[len(_OF) :]: texts(names, key, where) for key, names in arrays.items() if key.lower().startswith(_OF)}
    alone, known = _found(arrays, FEATURES, where), [info.name for info in infos]
    if alone and (len(known) > 1 or found):
        keys = ", ".join(f"{_OF}{name}" for name in known)
        raise InputError(
            f"{where}: expected the names of each input's features, {keys} (of a factory a dict of them by input), got "
            f"{FEATURES} beside inputs {', '.join(known)}"
        )
    found |= {known[0]: alone} if alone else {}
    unknown = next((name for name in found if name not in known), None)
    if unknown is not None:
        raise InputError(f"{where}: expected {_OF}NAME of an input ({', '.join(known)}), got {shown(unknown)}")
    return tuple(_named(info, found.get(info.name, info.feature_names), where) for info in infos)


def _named(info: InputInfo, names: tuple[str, ...], where: str) -> InputInfo:
    if not names:
        return info
    dim = feature_dim(None, info.shape, len(names), f"{where}, input {info.name}")
    return replace(info, feature_names=names, feature_dim=dim if info.feature_dim is None else info.feature_dim)


def feature_dim(asked: str | None, shape: Sequence[int | None], n_names: int, where: str) -> int | None:
    """The dim of a batch that features lie along, as asked or by their names; None where neither tells one.

    Raises:
        InputError: no such dim, or another number of names than there are features along any, or numbers in all.
    """
    dims = _asked(asked, shape, where)
    fitting = [dim for dim in dims if n_names in (0, shape[dim - 1])]
    if not fitting:
        _check_all_named(shape, dims, n_names, where)
    told = fitting if asked is None else dims
    return told[0] if len(told) == 1 else None


def _asked(asked: str | None, shape: Sequence[int | None], where: str) -> list[int]:
    """The dims that are meant: all without a word, else the one of this number, or the `last`."""
    dims = list(range(1, len(shape) + 1))
    if asked is None:
        return dims
    found = [dim for dim in dims if asked in (str(dim), "last" if dim == len(shape) else None)]
    if not found:
        raise InputError(f"{where}: expected features=1 to {len(shape)} or last for inputs {shape}, got {asked!r}")
    return found


def _check_all_named(shape: Sequence[int | None], dims: Sequence[int], n_names: int, where: str) -> None:
    """Raise InputError where names that are of no dim's features are not of all numbers of an input, either."""
    sizes = [size for size in shape if size is not None]
    in_all = math.prod(sizes) if len(sizes) == len(shape) else None
    if n_names != in_all:
        counts = dict.fromkeys((*(shape[dim - 1] for dim in dims), in_all))
        expected = " or ".join(str(count) for count in counts if count is not None) or "no"
        raise InputError(f"{where}: expected {expected} feature names for inputs {tuple(shape)}, got {n_names}")
