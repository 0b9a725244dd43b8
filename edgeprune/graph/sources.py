"""What hands out units: dims of tensors, elements of inputs; their labels, and the values that are made of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.graph.findings import Source
from edgeprune.graph.labels import Value, pack, spread
from edgeprune.graph.solve import Solver


def unit_sizes(sizes: Sequence[Any]) -> tuple[int, ...]:
    """How many units an input has along each dim behind the batch: one an element.

    Where any of the `sizes` is free (no int), the units are the indices of the first that is fixed, and other dims
    have one: `(None, 6)` is `(1, 6)`. All ones where none is fixed.
    """
    fixed = [dim for dim, size in enumerate(sizes) if isinstance(size, int)]
    told = fixed if len(fixed) == len(sizes) else fixed[:1]
    return tuple(size if dim in told else 1 for dim, size in enumerate(sizes))


class Sources:
    """The sources that were met, by kind, name and dim, as `found`."""

    def __init__(self, solver: Solver) -> None:
        self.found: dict[tuple[str, str, int | None], Source] = {}
        self._solver = solver
        self._canonical = np.zeros(1, dtype=np.int64)
        self._values: dict[tuple[str, str], tuple[list[Tensor], Value]] = {}

    def begin_pass(self) -> None:
        """From now on labels are those of the equalities that are known now."""
        self._canonical = self._solver.canonical

    def labels(self, kind: str, name: str, dim: int | None, count: int) -> Tensor:
        """The present labels of a source, `(count,)`; handed out when it is first met."""
        key = (kind, name, dim)
        if key not in self.found:
            self.found[key] = Source(kind, name, dim, self._solver.fresh(count))
        ids = self.found[key].ids
        is_new = len(ids) and ids[0] >= len(self._canonical)  # met in this pass: nothing is known of them yet
        return torch.from_numpy(ids if is_new else self._canonical[ids])

    def labelled(self, kind: str, name: str, sizes: Sequence[Any], bare: Value) -> Value:
        """`bare` with a unit for each index of each dim; dims of symbolic size and of size 1 have none."""
        dims = tuple((d, size) for d, size in enumerate(sizes) if isinstance(size, int) and size > 1)
        if not math.prod(bare.shape):
            return bare
        zero = bare.const is None or not bool(bare.const.any())  # a parameter is zeroed where it is removed

        def build(labels: list[Tensor]) -> Value:
            spreads = (spread(vector, (d,), bare.shape) for vector, (d, _) in zip(labels, dims, strict=True))
            layers = (pack(vector, zero) for vector in spreads)
            return Value(bare.shape, tuple(layer for layer in layers if layer.dims), bare.const)

        return self.remembered(kind, name, dims, build)

    def remembered(
        self, kind: str, name: str, dims: Sequence[tuple[int | None, int]], build: Callable[[list[Tensor]], Value]
    ) -> Value:
        """The value that `build` makes of a source's labels; the very same object while they do not change."""
        labels = [self.labels(kind, name, dim, size) for dim, size in dims]
        known = self._values.get((kind, name))
        if known is None or not all(torch.equal(a, b) for a, b in zip(known[0], labels, strict=True)):
            known = (labels, build(labels))
            self._values[kind, name] = known
        return known[1]
