"""How what a network costs changes with its widths: MACs, bytes, and milliseconds on a device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.export import ExportedProgram

from edgeprune.cost.device import Device
from edgeprune.cost.layers import LayerShape, layer_shapes
from edgeprune.cost.macs import macs_by_node
from edgeprune.graph.groups import ChannelGraph

Orders = Sequence[np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """One dim that a cost depends on.

    `kept` holds for each group number `(n_units + 1,)`, how many of the dim's channels stay when so many units of the
    group do; `fixed` are those that always stay. `relative` `(size + 1,)` is the share of the cost at each width; None
    where the cost is proportional to it. `labels` `(size,)` are the units of its channels.
    """

    size: int
    fixed: int
    kept: dict[int, np.ndarray]
    labels: np.ndarray
    relative: np.ndarray | None = None

    def share(self, counts: np.ndarray) -> float:
        """The share of the cost when `counts[g]` units of group g stay."""
        return self.at(self.fixed + sum(float(kept[int(counts[g])]) for g, kept in self.kept.items()))

    def share_of(self, keep: np.ndarray) -> float:
        """The share of the cost when the units marked in `keep`, bool by label, stay."""
        return self.at(float(keep[self.labels].sum()))

    def shares(self, counts: np.ndarray) -> np.ndarray:
        """`share` of several networks at once, `(n, n_groups)` of whole numbers in, `(n,)` out."""
        width = np.full(len(counts), float(self.fixed))
        for g, kept in self.kept.items():
            width += kept[counts[:, g]]
        if self.relative is None:
            return width / self.size
        return np.asarray(np.interp(width, np.arange(self.size + 1), self.relative))

    def at(self, width: float) -> float:
        """The share of the cost at a width."""
        if self.relative is None:
            return width / self.size
        return float(np.interp(width, np.arange(self.size + 1), self.relative))


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A cost that is `base` times a share for each dim."""

    base: float
    dims: tuple[Dim, ...]

    def cost(self, counts: np.ndarray) -> float:
        """What is left of it when `counts[g]` units of group g stay."""
        result = float(self.base)
        for dim in self.dims:
            result *= dim.share(counts)
        return result

    @property
    def groups(self) -> set[int]:
        """The groups that it depends on."""
        return {g for dim in self.dims for g in dim.kept}


class CostModel:
    """A cost as a function of how many units of each group stay: a sum of products."""

    def __init__(self, products: Iterable[Product], n_groups: int) -> None:
        self.products = list(products)
        self.total = sum(product.base for product in self.products)
        self.touching: list[list[int]] = [[] for _ in range(n_groups)]
        for index, product in enumerate(self.products):
            for number in product.groups:
                self.touching[number].append(index)

    def cost(self, counts: np.ndarray) -> float:
        """What the whole network costs when `counts[g]` units of group g stay."""
        return sum(product.cost(counts) for product in self.products)

    def costs(self, counts: np.ndarray) -> np.ndarray:
        """`cost` of several networks at once, `(n, n_groups)` of whole numbers in, `(n,)` out."""
        total = np.zeros(len(counts))
        for product in self.products:
            cost = np.full(len(counts), float(product.base))
            for dim in product.dims:
                cost *= dim.shares(counts)
            total += cost
        return total

    def saving(self, counts: np.ndarray, group: int, n_removed: int) -> float:
        """What is saved by removing `n_removed` more units of one group."""
        fewer = counts.copy()
        fewer[group] -= n_removed
        return sum(self.products[i].cost(counts) - self.products[i].cost(fewer) for i in self.touching[group])

    def share(self, group: int, counts: np.ndarray) -> float:
        """The part of the cost that depends on a group."""
        return sum(self.products[i].cost(counts) for i in self.touching[group])

    def left(self, keep: np.ndarray) -> float:
        """What the whole network costs when the units marked in `keep`, bool `(n_labels,)`, stay."""
        return sum(product.base * math.prod(dim.share_of(keep) for dim in product.dims) for product in self.products)

    def prices(self, keep: np.ndarray) -> np.ndarray:
        """What each unit costs at the widths that are left, `(n_labels,)`: its part of every dim that it lies in.

        On a device's stairs one unit saves nothing or all at once; there it has its part of the whole stair.
        """
        found = np.zeros(len(keep))
        for product in self.products:
            cost = product.base * math.prod(dim.share_of(keep) for dim in product.dims)
            for dim in product.dims:
                width = float(keep[dim.labels].sum())
                if width:
                    np.add.at(found, dim.labels, cost / width)
        return found


class Maker:
    """Turns labels into dims. Without `orders`, units count as spread evenly over their dims."""

    def __init__(self, graph: ChannelGraph, orders: Orders | None) -> None:
        self.graph = graph
        self.group_of = graph.group_numbers()
        self.places = [(group.units, None if orders is None else orders[g]) for g, group in enumerate(graph.groups)]

    def dim(self, labels: np.ndarray, relative: np.ndarray | None = None) -> Dim:
        numbers = np.where(labels > 0, self.group_of[labels], -1)
        present = np.unique(numbers[numbers >= 0])
        kept = {int(g): _kept_channels(labels[numbers == g], *self.places[g]) for g in present}
        return Dim(len(labels), int((numbers < 0).sum()), kept, labels, relative)

    def dims(self, vectors: Iterable[np.ndarray]) -> tuple[Dim, ...]:
        return tuple(self.dim(labels) for labels in vectors)

    def by_node(self, costs: dict[str, float]) -> Iterator[Product]:
        """Costs of nodes that change as their operations do."""
        whole: list[tuple[float, list[np.ndarray]]] = [(1.0, [])]
        terms = self.graph.costs
        for name, base in costs.items():
            for share, vectors in terms.get(name, whole):
                yield Product(base * share, self.dims(vectors))


def macs_model(graph: ChannelGraph, orders: Orders | None = None) -> CostModel:
    """MACs for one sample. `orders` tells in which order the units of each group go."""
    by_node = macs_by_node(graph.analysis.program)  # its nodes are the ones that the graph knows
    make = Maker(graph, orders)
    return CostModel(make.by_node({name: float(base) for name, base in by_node.items()}), len(graph.groups))


def bytes_model(program: ExportedProgram, graph: ChannelGraph, orders: Orders | None = None) -> CostModel:
    """Bytes of the parameters and buffers, tied ones once."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in program.state_dict.items()}
    return _of_tensors(graph, sizes, orders)


def params_model(graph: ChannelGraph, orders: Orders | None = None) -> CostModel:
    """Numbers in the parameters, tied ones once."""
    named = graph.analysis.program.named_parameters()
    return _of_tensors(graph, {name: parameter.numel() for name, parameter in named}, orders)


def _of_tensors(graph: ChannelGraph, sizes: Mapping[str, int], orders: Orders | None) -> CostModel:
    """A cost of tensors by their names, each proportional to its number of elements."""
    make = Maker(graph, orders)
    tensors = graph.analysis.tensors
    products = []
    for name, size in sizes.items():
        if tensors.first_name(name) == name:
            found = (graph.labels("tensor", name, dim) for dim in range(tensors.rank(name)))
            products.append(Product(size, make.dims(labels for labels in found if labels is not None)))
    return CostModel(products, len(graph.groups))


def latency_model(graph: ChannelGraph, device: Device, orders: Orders | None = None) -> CostModel:
    """Milliseconds of one batch on a device, by the stairs measured on it.

    Layers that were not measured (matrix products, transposed convolutions, recurrent cells) cost as much per MAC as
    the measured ones do together; others that were not count for nothing.
    """
    by_node = macs_by_node(graph.analysis.program)
    shapes = {name: shape for name, shape in layer_shapes(graph).items() if device.knows(shape)}
    measured = [name for name in shapes if name in by_node]
    n_macs = sum(by_node[name] for name in measured)
    per_mac = sum(device.milliseconds(shapes[name]) for name in measured) / n_macs if n_macs else 0.0
    make = Maker(graph, orders)
    products = [product for name, shape in shapes.items() for product in _timed(make, name, shape, device)]
    others = {name: base * per_mac for name, base in by_node.items() if name not in shapes}
    return CostModel([*products, *make.by_node(others)], len(graph.groups))


def main_step(graph: ChannelGraph, device: Device | None) -> int:
    """How many channels make a stair on a device, for the kind of layer that takes most of the network's time.

    Kinds whose stairs were not measured are left out; 1 where there is none, and without a device.
    """
    if device is None:
        return 1
    times: dict[str, float] = {}
    for shape in layer_shapes(graph).values():
        if device.knows(shape) and device.step(shape.kind) is not None:
            times[shape.kind] = times.get(shape.kind, 0.0) + device.milliseconds(shape)
    return (device.step(max(times, key=lambda kind: times[kind])) if times else None) or 1


def _timed(make: Maker, name: str, shape: LayerShape, device: Device) -> Iterator[Product]:
    """A measured layer: the stairs of its widths, or one stair over the share of its MACs where it has one width."""
    base = device.milliseconds(shape)
    if shape.in_labels is not None and shape.out_labels is not None:
        sides = ((shape.in_labels, device.stairs(shape, "in")), (shape.out_labels, device.stairs(shape, "out")))
        yield Product(base, tuple(make.dim(labels, curve) for labels, curve in sides))
        return
    curve = device.stairs(shape, "out")
    if shape.out_labels is not None:
        yield Product(base, (make.dim(shape.out_labels, curve),))
        return
    for share, vectors in make.graph.costs.get(name, [(1.0, [])]):
        curves = [_stretched(curve, len(labels)) if n == 0 else None for n, labels in enumerate(vectors)]
        yield Product(base * share, tuple(make.dim(v, own) for v, own in zip(vectors, curves, strict=True)))


def _stretched(curve: np.ndarray, size: int) -> np.ndarray:
    """A curve over the widths of a layer, as one over a dim that has another number of channels."""
    return np.interp(np.linspace(0, 1, size + 1), np.linspace(0, 1, len(curve)), curve)


def _kept_channels(labels: np.ndarray, units: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """How many of these labels are left when 0, 1, ... units stay, `(n_units + 1,)`."""
    if order is None:
        return np.arange(len(units) + 1) * (len(labels) / len(units))
    channels = np.bincount(np.searchsorted(units, labels), minlength=len(units))
    return np.concatenate([[0], np.cumsum(channels[order[::-1]])])
