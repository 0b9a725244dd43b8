"""What a network costs: MACs, parameters, bytes; and how the MACs change with the widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from edgeprune.graph.binding import shape_of
from edgeprune.graph.capture import size_hint
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.sizes import input_values


def _fused_lstm(steps: torch.Size, w_ih: torch.Size, w_hh: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of one direction of an LSTM layer, `steps` `(time, batch, features)`; PyTorch has no formula for it."""
    return 2 * steps[0] * steps[1] * (w_ih.numel() + w_hh.numel())


_FORMULAS = {torch.ops.aten.mkldnn_rnn_layer: _fused_lstm}


def macs_by_node(program: ExportedProgram) -> dict[str, int]:
    """Multiply-accumulates of each node for one sample, by `torch.utils.flop_counter` (which counts two FLOPs each)."""
    values = input_values(program)
    batch = next((size_hint(val.shape[0]) for val in values if isinstance(val, Tensor) and val.dim()), 1)
    found = {}
    known: dict[str, int] = {}  # networks repeat their layers
    with FakeTensorMode(), torch.no_grad():
        for node in program.graph.nodes:
            if not _may_multiply(node):
                continue
            call = str((node.target, *fx.node.map_arg((node.args, node.kwargs), _shown)))
            if call not in known:
                known[call] = _flops(node)
            if known[call]:
                found[node.name] = known[call] // 2 // batch
    return found


def _shown(node: fx.Node) -> Any:
    """A node's value as far as its cost goes: shapes and types."""

    def leaf(val: Any) -> Any:
        return (shape_of(val), str(val.dtype)) if isinstance(val, Tensor) else size_hint(val)

    return tree_map(leaf, node.meta.get("val"))


def macs(program: ExportedProgram) -> int:
    """Multiply-accumulates of the whole network for one sample."""
    return sum(macs_by_node(program).values())


def _may_multiply(node: fx.Node) -> bool:
    """Whether it is an operator that has a formula, or is made of others that may have one."""
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload) or torch.Tag.pointwise in operator.tags:
        return False
    if operator is torch.ops.aten.batch_norm.default:  # made of twenty operators, and none has a formula
        return False
    is_known = operator.overloadpacket in flop_registry or operator.overloadpacket in _FORMULAS
    return is_known or torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


def _flops(node: fx.Node) -> int:
    """Floating-point operations of one node, run on tensors without contents of the shapes that it has."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _stand_in)
    target: Any = node.target
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        target(*args, **kwargs)
    return counter.get_total_flops()


def _stand_in(node: fx.Node) -> Any:
    """A tensor of the shape and type of a node's value; symbolic sizes as the ints that they stand for."""

    def leaf(val: Any) -> Any:
        return torch.empty(shape_of(val), dtype=val.dtype) if isinstance(val, Tensor) else size_hint(val)

    return tree_map(leaf, node.meta.get("val"))


def count_parameters(program: ExportedProgram) -> int:
    """Numbers in parameters, tied ones once."""
    unique = {p.data_ptr(): p.numel() for p in program.state_dict.values() if isinstance(p, torch.nn.Parameter)}
    return sum(unique.values())


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """One node's MACs: `base` times, for each dim, the kept share of its channels.

    `kept` `(n_dims,)` holds a dict for each dim: group number -> `(n_units + 1,)`, how many of the dim's channels stay
    when so many units of the group do. `fixed` are those that always stay.
    """

    base: int
    sizes: tuple[int, ...]
    fixed: tuple[int, ...]
    kept: tuple[dict[int, np.ndarray], ...]

    def macs(self, counts: np.ndarray) -> float:
        """MACs when `counts[g]` units of group g stay."""
        result = float(self.base)
        for size, fixed, groups in zip(self.sizes, self.fixed, self.kept, strict=True):
            result *= (fixed + sum(kept[int(counts[g])] for g, kept in groups.items())) / size
        return result


class CostModel:
    """MACs of a network as a function of how many units of each group stay.

    `orders` tells in which order the units of each group go; without it they count as spread evenly over their dims.
    """

    def __init__(
        self, program: ExportedProgram, graph: ChannelGraph, orders: Sequence[np.ndarray] | None = None
    ) -> None:
        group_of = graph.group_numbers()
        places = [(group.units, None if orders is None else orders[g]) for g, group in enumerate(graph.groups)]
        by_node = macs_by_node(graph.analysis.program)  # its nodes are the ones that the graph knows
        self.total = sum(by_node.values())
        costs = graph.costs
        whole: list[tuple[float, list[np.ndarray]]] = [(1.0, [])]
        self.products = [
            _product(round(base * share), vectors, group_of, places)
            for name, base in by_node.items()
            for share, vectors in costs.get(name, whole)
        ]
        self.touching: list[list[int]] = [[] for _ in graph.groups]
        for index, product in enumerate(self.products):
            for number in {g for groups in product.kept for g in groups}:
                self.touching[number].append(index)

    def macs(self, counts: np.ndarray) -> float:
        """MACs of the whole network when `counts[g]` units of group g stay."""
        return sum(product.macs(counts) for product in self.products)

    def saving(self, counts: np.ndarray, group: int, n_removed: int) -> float:
        """MACs saved by removing `n_removed` more units of one group."""
        fewer = counts.copy()
        fewer[group] -= n_removed
        return sum(self.products[i].macs(counts) - self.products[i].macs(fewer) for i in self.touching[group])


def _product(
    base: int, vectors: list[np.ndarray], group_of: np.ndarray, places: list[tuple[np.ndarray, np.ndarray | None]]
) -> Product:
    sizes, fixed, kept = [], [], []
    for labels in vectors:
        numbers = np.where(labels > 0, group_of[labels], -1)
        sizes.append(len(labels))
        fixed.append(int((numbers < 0).sum()))
        present = np.unique(numbers[numbers >= 0])
        kept.append({int(g): _kept_channels(labels[numbers == g], *places[g]) for g in present})
    return Product(base, tuple(sizes), tuple(fixed), tuple(kept))


def _kept_channels(labels: np.ndarray, units: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """How many of these labels are left when 0, 1, ... units stay, `(n_units + 1,)`."""
    if order is None:
        return np.arange(len(units) + 1) * (len(labels) / len(units))
    channels = np.bincount(np.searchsorted(units, labels), minlength=len(units))
    return np.concatenate([[0], np.cumsum(channels[order[::-1]])])
