"""Two plans, one for what the other makes, as one plan for the dense network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgeprune.graph.names import split_names
from edgeprune.pruning.plan import PlannedBlock, PlannedGroup, PlannedSplit, PruningPlan
from edgeprune.records import InputFeatures


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan that does in one cut of the dense network what two cuts do one after the other."""
    splits, second = _with_whole_layers(first.splits, second)
    return PruningPlan(
        first.source_sha256,
        _composed_tensors(first, second),
        _composed_inputs(first, second),
        tuple(_composed_groups(first, second)),
        second.attention,
        first.folded,
        {**first.state, **second.state},
        {**first.vocabularies, **second.vocabularies},
        min((one.aligned for one in (first, second) if one.aligned is not None), default=None),
        first.blocks + second.blocks,
        tuple(split for split in splits if split.weight not in second.block_tensors) + second.splits,
    )


def _composed_tensors(first: PruningPlan, second: PruningPlan) -> dict[str, dict[int, tuple[int, ...]]]:
    """What is kept of the tensors that are left."""
    gone = second.block_tensors
    tensors = {name: dict(dims) for name, dims in first.tensors.items() if name not in gone}
    for name, dims in second.tensors.items():
        mine = tensors.setdefault(name, {})
        for dim, kept in dims.items():
            before = mine.get(dim)
            mine[dim] = kept if before is None else tuple(before[k] for k in kept)
    return tensors


def _composed_inputs(first: PruningPlan, second: PruningPlan) -> dict[str, InputFeatures]:
    """Features keep their dense numbers: the input is gathered inside, so that every cut sees all of it."""
    inputs = {**first.inputs, **second.inputs}
    for name in first.state.keys() & first.inputs.keys() & second.inputs.keys():  # of a state it sees what was left
        state = first.inputs[name]
        left = tuple(state.keep[k] for k in second.inputs[name].keep)
        inputs[name] = InputFeatures(state.size, left, state.dim)
    return inputs


def _composed_groups(first: PruningPlan, second: PruningPlan) -> Iterator[PlannedGroup]:
    """The groups of the first plan that are left, and those that only the second one has.

    Without a block channels may be coupled in others, and a plan that only takes blocks or splits layers has none.
    """
    after = {group.name: group for group in second.groups}
    layers = {tensor.rpartition(".")[0] for tensor in second.block_tensors}
    for group in first.groups:
        later = after.pop(group.name, None)
        if group.name in layers:
            continue
        if later is None:
            yield group
        else:
            yield PlannedGroup(group.name, group.before, later.after, group.exact and later.exact)
    yield from after.values()


# -- layers that were split -------------------------------------------------------------------------------------------


def _with_whole_layers(
    splits: Sequence[PlannedSplit], later: PruningPlan
) -> tuple[tuple[PlannedSplit, ...], PruningPlan]:
    """A plan for a network with splits, as one for the network without; and the splits with the ranks that it leaves.

    To slice both layers that a split made, on the outside, is to slice the layer that it was made of.
    """
    if not splits:
        return (), later
    tensors = {name: dict(dims) for name, dims in later.tensors.items()}
    ranks: list[PlannedSplit] = []
    whole: dict[str, str] = {}
    inner: set[str] = set()
    for split in splits:
        down, up = split_names(split.weight)
        narrowed, widened = tensors.pop(down, {}), tensors.pop(up, {})
        left = narrowed.pop(0, None)
        ranks.append(split if left is None else replace(split, rank=len(left)))
        widened.pop(1, None)
        if narrowed or widened:
            tensors[split.weight] = {**widened, **narrowed}
        whole |= {down: split.weight, up: split.weight, _layer(up): _layer(split.weight)}
        inner |= {down, _layer(down)}
    outer = (group for group in later.groups if group.name not in inner)
    groups = tuple(replace(group, name=whole.get(group.name, group.name)) for group in outer)
    blocks = tuple(PlannedBlock(block.name, _renamed(block.tensors, whole)) for block in later.blocks)
    return tuple(ranks), replace(later, tensors=tensors, groups=groups, blocks=blocks)


def _renamed(tensors: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted({names.get(name, name) for name in tensors}))


def _layer(weight: str) -> str:
    return weight.rpartition(".")[0] or weight
