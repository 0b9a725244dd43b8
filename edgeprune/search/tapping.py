"""Where a network that was cut is compared with the dense one: the ends of stages, and what the last layer reads."""

from __future__ import annotations

from torch import fx

from edgeprune.graph.binding import shape_of
from edgeprune.graph.names import split_names
from edgeprune.pruning.plan import PruningPlan
from edgeprune.reconstruction.readers import Reader, readers_of
from edgeprune.training.features import Tap


def taps_of(module: fx.GraphModule, teacher: fx.GraphModule, plan: PruningPlan) -> list[Tap]:
    """What layers of both networks read where the spatial size changes and at the end, each value once.

    What no parameter has had a part in is left out: there both read the same.

    Args:
        module: the slim network.
        teacher: the dense one, with the names of the plan.
        plan: what was kept of it.
    """
    whole = {split_names(split.weight)[0]: split.weight for split in plan.splits}
    dense = {reader.weight: reader for reader in readers_of(teacher).values()}
    found: dict[fx.Node, Tap] = {}
    readers = [reader for reader in readers_of(module).values() if whole.get(reader.weight, reader.weight) in dense]
    for number, reader in enumerate(readers):
        before = readers[number - 1] if number else None
        if number == len(readers) - 1 or _changes_size(reader) or _is_elsewhere(reader, before):
            name = whole.get(reader.weight, reader.weight)
            tap = _tap(reader, dense[name], plan, name)
            if tap is not None and _is_computed(reader.source):
                found.setdefault(reader.source, tap)
    return list(found.values())


def _tap(reader: Reader, dense: Reader, plan: PruningPlan, name: str) -> Tap | None:
    """What a layer reads in both networks; None where its weight does not tell which channels that are."""
    if reader.groups != 1 or dense.groups != 1:
        return None
    kept = plan.tensors.get(name, {}).get(0 if reader.transposed else 1)
    return Tap(reader.source, dense.source, -1 if reader.window is None else 1, kept)


def _positions(node: fx.Node, reader: Reader) -> tuple[int, ...]:
    """The size of a value without its batch and channels."""
    shape = shape_of(node.meta["val"])
    return shape[1:-1] if reader.window is None else shape[2:]


def _changes_size(reader: Reader) -> bool:
    return _positions(reader.node, reader) != _positions(reader.source, reader)


def _is_elsewhere(reader: Reader, before: Reader | None) -> bool:
    """Whether something between this layer and the one before, such as a pool, has changed the size."""
    return before is not None and _positions(reader.source, reader) != _positions(before.node, before)


def _is_computed(node: fx.Node) -> bool:
    """Whether a parameter has had a part in a value."""
    waiting, seen = [node], {node}
    while waiting:
        one = waiting.pop()
        if one.op == "get_attr":
            return True
        fresh = [read for read in one.all_input_nodes if read not in seen]
        seen.update(fresh)
        waiting += fresh
    return False
