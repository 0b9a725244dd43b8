"""Values that are known while a network is captured: constants of its file, and sizes, the batch a symbol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Size = Any  # an int, or a torch.SymInt


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Numbers that shapes are made of: `values` is an array of objects, ints and symbols; `dtype` is the tensor's."""

    values: np.ndarray
    dtype: torch.dtype

    @classmethod
    def of(cls, values: Any, dtype: torch.dtype = torch.int64) -> Known:
        """From a number, a list, or an array of numbers and symbols."""
        if isinstance(values, np.ndarray):
            return cls(values.astype(object), dtype)
        made = np.empty(len(values) if isinstance(values, (list, tuple)) else (), dtype=object)
        if made.shape:
            made[:] = list(values)
        else:
            made[()] = values
        return cls(made, dtype)

    @property
    def is_fixed(self) -> bool:
        """Whether it holds plain numbers alone."""
        return all(isinstance(value, (int, float, bool)) for value in self.values.flat)

    def tensor(self) -> Tensor:
        """As a tensor; symbols stay symbols."""
        if self.is_fixed:
            return torch.tensor(self.values.tolist(), dtype=self.dtype)
        parts = [torch.scalar_tensor(value, dtype=self.dtype) for value in self.values.flat]
        return torch.stack(parts).reshape(self.values.shape) if self.values.shape else parts[0]


def known_of(tensor: Tensor) -> Known:
    """A constant's numbers."""
    array = tensor.numpy()
    return Known(np.array(array.tolist(), dtype=object).reshape(array.shape), tensor.dtype)


def is_symbol(size: Size) -> bool:
    """Whether a size is one that stays free."""
    return isinstance(size, torch.SymInt)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes, symbols among them; 1 of none."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total
