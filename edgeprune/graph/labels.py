"""Labels: every element of every value carries the ids of the units that it came from.

A label above 0 names a unit (a channel, an input feature, ...); 0 means fixed: no cut may touch the element; below 0
means pending: the element varies with a unit that is not known yet, so nothing may be concluded from it.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def dims(self) -> tuple[int, ...]:
        """The dims along which the labels vary."""
        labels = self.labels
        return tuple(d for d, n in enumerate(labels.shape) if n > 1 and labels.stride(d) != 0)

    @property
    def pending(self) -> bool:
        """Whether the units behind it are not known yet."""
        return bool(self.labels.numel()) and int(self.labels[(0,) * self.labels.dim()]) < 0


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


def pack(labels: Tensor, zero: bool) -> Layer:
    """A layer with stride 0 restored along every dim on which the labels turn out not to vary."""
    for dim, size in enumerate(labels.shape):
        if size > 1 and labels.stride(dim) != 0:
            first = labels.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(labels), labels):
                labels = first.expand_as(labels)
    return Layer(labels, zero)


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


def pending_labels(sizes: tuple[int, ...]) -> Tensor:
    """Distinct labels below 0, `sizes`."""
    count = 1
    for size in sizes:
        count *= size
    return -torch.arange(1, count + 1).reshape(sizes)


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
    return Layer(spread(pending_labels(tuple(shape[d] for d in targets)), targets, shape), zero=False)
