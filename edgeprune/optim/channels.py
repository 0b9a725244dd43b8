"""The grouper that follows a network's channel groups: units that are coupled over layers vanish together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, Slot

_Combine = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroups:
    """One group for every unit of a channel graph: the group runs over every slot of the unit, in all its layers.

    The channels that the layers of a residual stage add up are one unit each, so they vanish in all of them or in none.
    A weight lies in the group of its output channel and, with `outgoing`, in that of its input channel too. Without it
    a unit is only what produces it (its rows, bias and normalisation): no two groups overlap, so that the prox map of
    their sum is exact, and a vanished unit still puts out its constant zero. Input features have nothing but their
    columns, which are always in.

    Needs named parameters, by the names that they have in the program.
    """

    graph: ChannelGraph
    outgoing: bool = True
    _names: frozenset[str] = field(init=False, repr=False)
    across = True

    def __post_init__(self) -> None:
        names = frozenset(slot.name for group in self.graph.groups for slot in self._slots(group))
        object.__setattr__(self, "_names", names)

    @property
    def name(self) -> str:
        """With how many units, so that the state of another network is told apart."""
        units = sum(group.n_units for group in self.graph.groups)
        return f"channel-group {units} {'with' if self.outgoing else 'without'} outgoing"

    def covers(self, name: str | None, weight: Tensor) -> bool:
        """Every parameter with a slot.

        Raises:
            InputError: the parameter has no name.
        """
        if name is None:
            raise InputError("channel groups: expected named parameters, got parameters without names")
        return name in self._names

    def bind(self, names: Sequence[str | None], weights: Sequence[Tensor]) -> UnitGroups:
        """The parts of every unit in these weights; units with none are left out.

        Raises:
            InputError: a weight has another size than the graph's.
        """
        position = {name: place for place, name in enumerate(names)}
        blocks, parts = [], []
        for number, group in enumerate(self.graph.groups):
            own = [
                _part(position[slot.name], slot, weights[position[slot.name]], group.n_units)
                for slot in self._slots(group)
                if slot.name in position
            ]
            if own:
                blocks.append(f"{number} {group.name}")
                parts.append(tuple(own))
        sizes = tuple(
            _sum(own, [torch.full_like(part.index, part.per_index, dtype=torch.float64) for part in own]).clamp_(min=1)
            for own in parts
        )
        return UnitGroups(tuple(blocks), tuple(parts), sizes, len(weights))

    def _slots(self, group: ChannelGroup) -> list[Slot]:
        every = [slot for slot in group.slots if slot.kind == "tensor" and slot.dim is not None]
        return [slot for slot in every if self.outgoing or group.is_input or slot.dim == 0]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One slot: `index[i]` is the unit of index `i` along `dim` of the weight at `place`, `n_units` for none."""

    place: int
    dim: int
    index: Tensor
    n_units: int
    others: tuple[int, ...]
    per_index: int


def _part(place: int, slot: Slot, weight: Tensor, n_units: int) -> _Part:
    dim = slot.dim or 0
    if weight.dim() <= dim or weight.shape[dim] != len(slot.unit):
        got = tuple(weight.shape)
        raise InputError(f"{slot.name}: expected {len(slot.unit)} channels along dim {dim}, got the shape {got}")
    unit = np.where(slot.unit < 0, n_units, slot.unit)
    others = tuple(other for other in range(weight.dim()) if other != dim)
    index = torch.from_numpy(unit).to(weight.device, torch.int64)
    return _Part(place, dim, index, n_units, others, weight.numel() // len(unit))


def _sum(parts: Sequence[_Part], masses: Sequence[Tensor]) -> Tensor:
    """What the indices of each unit add up to, `(n_units,)`, of one vector a part."""
    total = masses[0].new_zeros(parts[0].n_units + 1)
    for part, mass in zip(parts, masses, strict=True):
        total.index_add_(0, part.index, mass.to(total.dtype))
    return total[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class UnitGroups:
    """The units of every channel group over the given weights; norms and values are `(n_units,)`.

    A block is named by its group and the group's number, since two may share a name. `sizes` counts the weights of each
    unit, 1 for a unit that has none here.
    """

    blocks: Sequence[str]
    parts: tuple[tuple[_Part, ...], ...]
    sizes: Sequence[Tensor]
    n_weights: int

    @property
    def owners(self) -> Sequence[int]:
        """The first weight of each."""
        return [parts[0].place for parts in self.parts]

    def norms(self, weights: Sequence[Tensor], order: int) -> list[Tensor]:
        """Over all slots of a unit."""
        sums = [_sum(parts, [_masses(weights[part.place], part, order) for part in parts]) for parts in self.parts]
        return sums if order == 1 else [total.sqrt() for total in sums]

    def totals(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """What the numbers of each unit add up to, over all its slots."""
        return [
            _sum(parts, [w.sum(part.others) if part.others else w for part in parts for w in [weights[part.place]]])
            for parts in self.parts
        ]

    def spread_sum(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """An element of a matrix may lie in a unit along each dim."""
        return self._spread(values, torch.add, 0.0)

    def spread_product(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """An element of a matrix may lie in a unit along each dim."""
        return self._spread(values, torch.mul, 1.0)

    def _spread(self, values: Sequence[Tensor], combine: _Combine, neutral: float) -> list[Tensor | None]:
        spread: list[Tensor | None] = [None] * self.n_weights
        for value, parts in zip(values, self.parts, strict=True):
            padded = torch.cat([value, value.new_full((1,), neutral)])
            for part in parts:
                shape = [-1 if dim == part.dim else 1 for dim in range(len(part.others) + 1)]
                mine, before = padded[part.index].view(shape), spread[part.place]
                spread[part.place] = mine if before is None else combine(before, mine)
        return spread


def _masses(weight: Tensor, part: _Part, order: int) -> Tensor:
    masses = weight.abs() if order == 1 else weight.square()
    return masses.sum(part.others) if part.others else masses
