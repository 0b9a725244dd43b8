"""How the most memory that activations take at once changes with the widths of a network.

That is the largest of many sums, one for each moment: of the values that are alive then. So a budget of it is one of
every moment, and each is a cost like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from torch import fx
from torch.utils._pytree import tree_leaves

from edgeprune.cost.activations import Values
from edgeprune.cost.limits import ACTIVATIONS, Limit
from edgeprune.cost.models import CostModel, Maker, Orders, Product
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import read_units
from edgeprune.graph.labels import Value, core


def activation_limits(graph: ChannelGraph, share: float, orders: Orders | None = None) -> list[Limit]:
    """What keeps the peak of the activations at a share of what it is: a limit for each moment that is over it."""
    models = activation_models(graph, orders)
    most = share * _peak(models)
    return [Limit(ACTIVATIONS, model, most / model.total) for model in models if model.total > most]


def activation_peak(graph: ChannelGraph) -> float:
    """The bytes that are alive at once at the most, for one sample, in the types that the network computes in."""
    return _peak(activation_models(graph))


def activation_models(graph: ChannelGraph, orders: Orders | None = None) -> list[CostModel]:
    """The bytes that are alive at each moment, for one sample, in the order of the operators that needs the least.

    Moments at which nothing is alive that is not at another are left out, and all but one that cost the same whatever
    the widths, as in blocks that repeat. A narrower network may do better in another order; what it does is to be
    measured.
    """
    values, make = Values.of(graph.analysis.program, slim=True), Maker(graph, orders)
    read = np.unique(read_units(graph.analysis))
    dims = [list(_dims(graph, read, *place)) for place in values.places]
    sizes = [size * math.prod(share for share, _ in own) for size, own in zip(values.sizes(), dims, strict=True)]
    lifetimes = values.lifetimes([round(size) for size in sizes])
    products = [
        Product(size, make.dims(labels for _, labels in own if len(labels)))
        for size, own in zip(sizes, dims, strict=True)
    ]
    alike = [_alike(product) for product in products]
    moments = _outermost(lifetimes.moments(lifetimes.best().order))
    distinct = {tuple(sorted(alike[value] for value in alive)): sorted(alive) for alive in moments}
    return [CostModel((products[value] for value in alive), len(graph.groups)) for alive in distinct.values()]


def _alike(product: Product) -> tuple[float, tuple[bytes, ...]]:
    """The same of values that are as large as each other whatever the widths."""
    return product.base, tuple(dim.labels.tobytes() for dim in product.dims)


def _peak(models: Iterable[CostModel]) -> float:
    return max((float(model.total) for model in models), default=0.0)


def _outermost(moments: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    """Those that are part of no other."""
    found: list[frozenset[int]] = []
    for alive in sorted(set(moments), key=lambda alive: (-len(alive), sorted(alive))):
        if not any(alive <= other for other in found):
            found.append(alive)
    return found


def _dims(graph: ChannelGraph, read: np.ndarray, node: fx.Node, number: int) -> Iterator[tuple[float, np.ndarray]]:
    """The units that a value's size goes by: of each dim, or of all places where it varies along several at once.

    What a device is given of an input holds no more than is read of it: with the share that this is.
    """
    value = [value for value in tree_leaves(graph.analysis.env[node]) if isinstance(value, Value)][number]
    seen: set[int] = set()
    for layer in value.layers:
        if layer.pending or not seen.isdisjoint(layer.dims):
            continue
        seen.update(layer.dims)
        labels = graph.analysis.solver.canonical[core(layer).numpy().ravel()]
        held = labels[np.isin(labels, read)] if value.raw else labels
        yield len(held) / len(labels), held
