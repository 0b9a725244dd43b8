"""Labels: every element of every value carries the ids of the units that it came from.

A label above 0 names a unit (a channel, an input feature, ...); 0 means fixed: no cut may touch the element; below 0
means pending: the element varies with a unit that is not known yet, so nothing may be concluded from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

FIXED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One labelling of a value.

    `labels` is int64 with the value's full shape and stride 0 along dims where it does not vary. `zero` tells that
    elements of removed units read zero in the masked dense network.
    """

    labels: Tensor
    zero: bool
    dims: tuple[int, ...] = field(init=False)  # along which the labels vary; asked for ten times as often as made

    def __post_init__(self) -> None:
        steps = zip(self.labels.shape, self.labels.stride(), strict=True)
        dims = tuple([d for d, (size, stride) in enumerate(steps) if size > 1 and stride != 0])
        object.__setattr__(self, "dims", dims)

    @property
    def pending(self) -> bool:
        """Whether the units behind it are not known yet."""
        return bool(self.labels.numel()) and int(self.labels[(0,) * self.labels.dim()]) < 0

    def same_as(self, other: Layer) -> bool:
        """Whether both label the same elements alike."""
        return self.zero == other.zero and self.dims == other.dims and torch.equal(core(self), core(other))


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the graph, seen as labels.

    `const` holds the tensor itself where it depends on no input and no parameter. `raw` marks what comes from a graph
    input by data movement and unary functions alone; such a value need not be rectangular, because the input is
    gathered only where it leaves this part of the graph.
    """

    shape: tuple[int, ...]
    layers: tuple[Layer, ...] = ()
    const: Tensor | None = None
    raw: bool = False

    def on(self, dim: int) -> list[Layer]:
        """The layers that vary along `dim`."""
        return [layer for layer in self.layers if dim in layer.dims]

    def same_as(self, other: Value) -> bool:
        """Whether both are the same to every rule."""
        return (
            (self.shape, self.raw) == (other.shape, other.raw)
            and self.const is other.const
            and len(self.layers) == len(other.layers)
            and all(mine.same_as(theirs) for mine, theirs in zip(self.layers, other.layers, strict=True))
        )


def pack(labels: Tensor, zero: bool) -> Layer:
    """A layer with stride 0 restored along every dim on which the labels turn out not to vary."""
    if not labels.numel():
        return Layer(labels, zero)
    for dim, size in enumerate(labels.shape):
        if size > 1 and labels.stride(dim) != 0:
            line = labels[tuple(slice(None) if d == dim else 0 for d in range(labels.dim()))]
            if not torch.equal(line, line[:1].expand_as(line)):
                continue  # it varies: no need to compare everything
            first = labels.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(labels), labels):
                labels = first.expand_as(labels)
    return Layer(labels, zero)


def vectors(layers: Iterable[Layer]) -> list[np.ndarray]:
    """The labels of the layers that vary along one dim alone, each `(n,)`."""
    return [core(layer).numpy() for layer in layers if len(layer.dims) == 1 and not layer.pending]


def core(layer: Layer) -> Tensor:
    """The labels over the varying dims only, `(n_first, n_second, ...)` in the order of `layer.dims`."""
    index = tuple(slice(None) if d in layer.dims else 0 for d in range(layer.labels.dim()))
    return layer.labels[index]


def spread(labels: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """`labels` `(n for each of dims)` laid out over `shape`, with stride 0 elsewhere. The inverse of `core`.

    `dims` may be in any order; `labels.shape[i] == shape[dims[i]]`.
    """
    order = sorted(range(len(dims)), key=dims.__getitem__)
    labels = labels.permute(order)
    sizes = [1] * len(shape)
    for position, k in enumerate(order):
        sizes[dims[k]] = labels.shape[position]
    return labels.reshape(sizes).expand(shape)


def reshape_labels(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`labels.reshape(shape)`, with stride 0 wherever the labels had it: full copies of token tensors take long."""
    index: list[slice | int] = [slice(None)] * labels.dim()
    sizes = list(shape)
    for ins, outs in _blocks(tuple(labels.shape), shape):
        if all(labels.shape[d] == 1 or labels.stride(d) == 0 for d in ins):
            for d in ins:
                index[d] = slice(0, 1)
            for d in outs:
                sizes[d] = 1
    return labels[tuple(index)].reshape(sizes).expand(shape)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Dims before and after a reshape that hold the same elements, smallest blocks first to last."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        ins: list[int] = []
        outs: list[int] = []
        n_old = n_new = 1
        while not (ins or outs) or n_old != n_new:
            if (n_old <= n_new and i < len(old)) or j == len(new):
                ins.append(i)
                n_old *= old[i]
                i += 1
            else:
                outs.append(j)
                n_new *= new[j]
                j += 1
        blocks.append((ins, outs))
    return blocks


@lru_cache(maxsize=64)
def pending_labels(sizes: tuple[int, ...]) -> Tensor:
    """Distinct labels below 0, `sizes`; shared, as labels are never written to."""
    return -torch.arange(1, math.prod(sizes) + 1).reshape(sizes)


def pending_over(dims: tuple[int, ...], shape: tuple[int, ...]) -> Layer:
    """A layer that varies along `dims` of `shape` by units that are not known yet."""
    return Layer(spread(pending_labels(tuple(shape[d] for d in dims)), dims, shape), zero=False)


def with_labels(layer: Layer, labels: Tensor) -> Layer:
    """The layer after its elements were moved: `labels` in place of its own, of any shape."""
    return Layer(labels, layer.zero) if layer.pending else pack(labels, layer.zero)


def remainder(layer: Layer, dims: dict[int, int], shape: tuple[int, ...]) -> Layer | None:
    """What a rule hands on of a layer that also varies along dims which the result lacks or that must stay whole.

    `dims` maps dims of the layer to dims of the result. Where all varying dims are mapped the labels are known; else
    the part that is mapped is pending, until a later pass has settled along which dim the layer varies.
    """
    mapped = tuple(d for d in layer.dims if d in dims)
    if not mapped:
        return None
    targets = tuple(dims[d] for d in mapped)
    if mapped == layer.dims:
        return pack(spread(core(layer), targets, shape), layer.zero)
    return pending_over(targets, shape)


def remainders(value: Value, dims: dict[int, int], shape: tuple[int, ...]) -> list[Layer]:
    """What a rule hands on of all layers of a value, see `remainder`."""
    found = (remainder(layer, dims, shape) for layer in value.layers)
    return [layer for layer in found if layer is not None]


def not_zero(value: Value) -> Value:
    """The same units, none of which reads zero where it is removed."""
    return Value(value.shape, tuple(Layer(layer.labels, False) for layer in value.layers))


def without_overlaps(layers: Iterable[Layer]) -> list[Layer]:
    """Layers over different but overlapping dims hold the same units, not resolved yet: pending over all of them.

    Of several over the same dims each is kept once; none while one of them is pending.
    """
    result: list[Layer] = []
    for layer in layers:
        twin = next((k for k, y in enumerate(result) if _says_the_same(y, layer)), None)
        clash = next((y for y in result if _overlap(y, layer)), None)
        if twin is not None:
            result[twin] = layer if layer.pending else Layer(result[twin].labels, result[twin].zero and layer.zero)
        elif clash is None:
            result.append(layer)
        else:
            pending = pending_over(tuple(sorted(set(clash.dims) | set(layer.dims))), tuple(layer.labels.shape))
            result = without_overlaps([y for y in result if y is not clash] + [pending])
    return result


def _overlap(one: Layer, other: Layer) -> bool:
    """Whether two layers vary along different dims that have some in common."""
    return one.dims != other.dims and not set(one.dims).isdisjoint(other.dims)


def _says_the_same(one: Layer, other: Layer) -> bool:
    """Whether one layer is enough for both: they vary along the same dims, by the same units or ones not known yet."""
    if one.dims != other.dims:
        return False
    return one.pending or other.pending or torch.equal(core(one), core(other))


def shuffle_groups(order: Sequence[int]) -> int | None:
    """The number of groups whose channel shuffle gives this order of indices, or None."""
    if len(order) < 4 or order[1] < 2 or len(order) % order[1]:
        return None
    groups = len(order) // order[1]
    expected = torch.arange(len(order)).reshape(groups, -1).T.reshape(-1).tolist()
    return groups if list(order) == expected else None
