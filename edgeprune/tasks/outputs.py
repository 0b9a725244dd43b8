"""What a network gives out, whatever holds it: tensors in dicts, tuples, lists and dataclasses."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.lines import one_line

_MOST_SHOWN = 160


def leaves(outputs: Any, name: str = "") -> list[tuple[str, Any]]:
    """The tensors and arrays in `outputs`, by name, in their order; None holds nothing.

    Example: of `{"boxes": a, "heads": (b, c)}` they are `boxes`, `heads.0` and `heads.1`.

    Raises:
        InputError: something else in it.
    """
    if outputs is None:
        return []
    if isinstance(outputs, (Tensor, np.ndarray)):
        return [(name, outputs)]
    parts = _parts(outputs)
    if parts is None:
        where = f"output {name}" if name else "outputs"
        raise InputError(
            f"{where}: expected tensors, in dicts, tuples, lists or dataclasses, got {type(outputs).__name__}"
        )
    return [leaf for key, part in parts for leaf in leaves(part, f"{name}.{key}" if name else key)]


class Named(dict[str, Any]):
    """Outputs by name, which are found as attributes too: as those of a dataclass are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def by_attribute(outputs: Any) -> Any:
    """The same outputs, the keys of dicts as attributes too: as a dataclass has them that was saved and read again."""
    if type(outputs) is dict:
        return Named((key, by_attribute(part)) for key, part in outputs.items())
    if type(outputs) in (tuple, list):
        return type(outputs)(map(by_attribute, outputs))
    return outputs


def mapped(outputs: Any, change: Callable[[Any], Any]) -> Any:
    """The same dicts, tuples and lists with all that is in them changed; dataclasses become dicts, None stays."""
    parts = _parts(outputs)
    if outputs is None or parts is None:
        return None if outputs is None else change(outputs)
    if isinstance(outputs, (tuple, list, deque)):
        return [mapped(part, change) for _, part in parts]
    return Named((key, mapped(part, change)) for key, part in parts)


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, (tuple, list, deque)):
        return [(str(index), part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def described(outputs: Any) -> str:
    """Shapes and types in one line, e.g. "(8, 10) float32", "boxes (8, 4) float32 and scores (8,) float32"."""
    try:
        found = leaves(outputs)
    except InputError:
        return type(outputs).__name__
    texts = [f"{name} {shape_of(value)} {_type(value)}".lstrip() for name, value in found]
    return one_line(" and ".join(texts), _MOST_SHOWN) or "nothing"


def shape_of(value: Any) -> str:
    """The shape as a tuple is written; sizes that are free are written by their symbols."""
    sizes = [str(size) for size in value.shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _type(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def only_tensor(outputs: Any, expected: str) -> Any:
    """The one tensor or array in `outputs`; of several none is taken.

    Raises:
        InputError: none, or several; begins with `expected`, e.g. "expected an output (batch, n_classes)".
    """
    found = leaves(outputs)
    if len(found) != 1:
        raise InputError(f"outputs: {expected}, got {described(outputs)}")
    return found[0][1]


def n_other_classes(want: np.ndarray, got: np.ndarray, allowed: float) -> int:
    """The places of scores `(n, n_classes, ...)` with another best class, where the two best are further apart."""
    changed = want.argmax(axis=1) != got.argmax(axis=1)
    best = np.sort(np.moveaxis(want, 1, -1)[changed], axis=-1)[:, -2:].astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities
        return int((best[:, 1] - best[:, 0] > allowed).sum())


def number_in(value: Any) -> float | None:
    """The number that a value is, NaN and infinity too, also as a tensor or an array `()`; None where it is none."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value)


def to_array(value: Any) -> np.ndarray:
    """A tensor, on whatever device, or an array, as an array."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy())
    return np.asarray(value)


def to_tensor(value: Any) -> Tensor:
    """A tensor, or an array, as a tensor on the CPU without gradients."""
    return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
