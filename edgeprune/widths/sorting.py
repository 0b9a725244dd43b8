"""Units in the order of importance: the same network, its units renumbered so that narrower ones are its first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import ProofError
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, Slot
from edgeprune.pruning.plan import PruningPlan

Places = Mapping[str, Mapping[int, np.ndarray]]  # tensor -> dim -> for each new index the old one
Prove = Callable[[Program], float]  # the error of a program that should compute what the first one does; or ProofError


@dataclass(frozen=True, slots=True, eq=False)
class Sorted:
    """A program whose units are in another order, where each index of its tensors was, and the error of the proof.

    `left` are the groups whose units stay in their order, as another one would change what the network computes.
    """

    program: Program
    places: Places
    left: tuple[str, ...]
    error: float

    def moved(self, plan: PruningPlan) -> PruningPlan:
        """A plan for the program of before as one for this one, which keeps the same units."""
        tensors = {
            name: {dim: _moved(kept, self.places.get(name, {}).get(dim)) for dim, kept in dims.items()}
            for name, dims in plan.tensors.items()
        }
        return replace(plan, tensors=tensors, source_sha256=digest(self.program))


def sort_units(program: Program, graph: ChannelGraph, orders: Sequence[np.ndarray], prove: Prove) -> Sorted:
    """Renumber the units of a program's groups; what it computes stays as it is, which is proved.

    Groups whose units are no equals, as where a part of the channels goes another way, stay in their order.

    Args:
        program: left as it is.
        graph: its channel groups.
        orders: for each group `(n_units,)`, the numbers of its units in their new order.
        prove: checks the new program.
    """
    moves = {g: found for g, group in enumerate(graph.groups) if (found := _moves(group, orders[g])) is not None}
    try:
        return _sorted(program, graph, moves, moves, prove)
    except ProofError:
        fitting = [g for g in moves if _is_same(program, graph, moves, g, prove)]
        return _sorted(program, graph, moves, fitting, prove)


_Moves = Mapping[int, Sequence[tuple[Slot, np.ndarray]]]  # group -> its slots, each with where its indices were


def _is_same(program: Program, graph: ChannelGraph, moves: _Moves, group: int, prove: Prove) -> bool:
    """Whether the network computes the same with the units of one group in their new order."""
    try:
        _sorted(program, graph, moves, [group], prove)
    except ProofError:
        return False
    return True


def _sorted(program: Program, graph: ChannelGraph, moves: _Moves, chosen: Iterable[int], prove: Prove) -> Sorted:
    """The program with the units of the chosen groups in their new order, proved."""
    chosen = list(chosen)
    places = _places(graph, [move for group in chosen for move in moves[group]])
    tensors, done = {**program.constants, **program.state_dict}, dict[int, Tensor]()
    changed = {
        name: done.setdefault(id(tensors[name]), _in_order(tensors[name], dims)) for name, dims in places.items()
    }
    fresh = program.with_tensors(changed)
    left = tuple(group.name for g, group in enumerate(graph.groups) if g not in chosen and group.n_units > 1)
    return Sorted(fresh, places, left, prove(fresh))


def _places(graph: ChannelGraph, moves: Iterable[tuple[Slot, np.ndarray]]) -> dict[str, dict[int, np.ndarray]]:
    """The moves by tensor, under each of its names, and dim; a dim may hold units of several groups."""
    places: dict[str, dict[int, np.ndarray]] = {}
    for slot, source in moves:
        for name in graph.analysis.tensors.aliases(slot.name) or [slot.name]:
            assert slot.dim is not None
            own = places.setdefault(name, {}).setdefault(slot.dim, np.arange(len(source)))
            own[slot.unit >= 0] = source[slot.unit >= 0]
    return places


def _in_order(tensor: Tensor, dims: Mapping[int, np.ndarray]) -> Tensor:
    """A tensor with its indices in another order."""
    data = tensor.detach()
    for dim, source in dims.items():
        data = data.index_select(dim, torch.from_numpy(source))
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _moves(group: ChannelGroup, order: np.ndarray) -> list[tuple[Slot, np.ndarray]] | None:
    """For each slot of a group, where each index was before its units are in their new order.

    A unit takes the indices of another one by their rank. None where a unit has more of them than another, or where
    units are no channels of weights alone.
    """
    if any(slot.kind not in ("tensor", "broadcast") for slot in group.slots):
        return None
    found = []
    for slot in group.slots:
        if slot.kind != "tensor":
            continue
        places = [np.flatnonzero(slot.unit == unit) for unit in range(group.n_units)]
        if len({len(own) for own in places}) > 1:
            return None
        source = np.arange(len(slot.unit))
        for new, old in enumerate(order):
            source[places[new]] = places[old]
        found.append((slot, source))
    return found


def _moved(kept: Sequence[int], source: np.ndarray | None) -> tuple[int, ...]:
    """Kept indices where they are now, ascending."""
    if source is None:
        return tuple(kept)
    return tuple(np.flatnonzero(np.isin(source, kept)).tolist())
