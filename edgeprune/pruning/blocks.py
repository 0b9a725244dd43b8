"""Whole residual blocks: where a sum adds something to what it was made of, that can go, and the identity is left.

He, Zhang, Ren and Sun, Identity Mappings in Deep Residual Networks, 2016: `y = x + f(x)`; without `f` it is `y = x`. A
block is known by the tensors that go with it, whose names every later network has too, cut or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeprune.errors import PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.binding import bind, shape_of
from edgeprune.graph.call import operator_name
from edgeprune.graph.capture import Program, own_tensors, reexport_like
from edgeprune.graph.prepare import prepared
from edgeprune.graph.writes import out_of_place
from edgeprune.pruning.editable import editable, forget
from edgeprune.pruning.plan import PlannedBlock, PruningPlan

_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Residual:
    """A block in a graph: `total = skip + branch`, of which `region` are the nodes that nothing else reads."""

    block: PlannedBlock
    total: fx.Node
    skip: fx.Node
    branch: fx.Node
    region: dict[fx.Node, None]


def residual_blocks(program: ExportedProgram) -> tuple[PlannedBlock, ...]:
    """The blocks of a program that may go, in the order of their sums.

    Not those that are the whole network, that alone read an input, or whose parameters are all read elsewhere too.
    """
    module = editable(program)
    out_of_place(module.graph)
    return tuple(found.block for found in _residuals(module.graph, module))


def plan_blocks(program: ExportedProgram, blocks: Sequence[PlannedBlock]) -> PruningPlan:
    """The plan that takes blocks out of a program, one after the other, and nothing else."""
    return PruningPlan(digest(program), {}, blocks=tuple(blocks))


def without_blocks(program: ExportedProgram, blocks: Sequence[PlannedBlock]) -> Program:
    """The program without some of its blocks; their parameters and buffers are gone.

    Raises:
        PlanError: it has no such block.
    """
    ready = prepared(program)
    module = editable(program)
    out_of_place(module.graph)
    for found in _one_after_the_other(module.graph, module, blocks):
        _take_out(module.graph, found)
    forget(module, [name for block in blocks for name in block.tensors])
    own_tensors(module)
    return reexport_like(module, ready)


def gated(program: ExportedProgram, blocks: Sequence[PlannedBlock]) -> fx.GraphModule:
    """The program as it is, but what comes out of the blocks is multiplied by zero: what it computes without them.

    Raises:
        PlanError: it has no such block.
    """
    module = Program.adopt(prepared(program)).frozen_module()
    copied = fx.Graph()
    counterparts: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(module.graph, counterparts)
    copied.output(result)
    out_of_place(copied)
    originals = {copy: original for original, copy in counterparts.items()}
    for found in _one_after_the_other(copied, module, blocks):
        total, branch = originals[found.total], originals[found.branch]
        with module.graph.inserting_before(total):
            closed = module.graph.call_function(_closed, (branch,))
        total.replace_input_with(branch, closed)
        _take_out(copied, found)
    module.recompile()
    return module


def _closed(value: Tensor) -> Tensor:
    """What a gate of zero lets through."""
    return torch.zeros_like(value)


# -- in a graph -------------------------------------------------------------------------------------------------------


def _one_after_the_other(graph: fx.Graph, module: nn.Module, blocks: Sequence[PlannedBlock]) -> Iterator[_Residual]:
    """Each block, in the graph as it is when the ones before are gone."""
    for block in blocks:
        known = {frozenset(found.block.tensors): found for found in _residuals(graph, module)}
        found = known.get(frozenset(block.tensors))
        if found is None:
            shown = ", ".join(block.tensors[:_SHOWN])
            raise PlanError(
                f"the plan takes out block {block.name!r} ({shown}, ...), which the model does not have: expected one "
                f"of {', '.join(found.block.name for found in known.values()) or 'none'}"
            )
        yield found


def _residuals(graph: fx.Graph, module: nn.Module) -> list[_Residual]:
    """All blocks of a graph that reads a module's tensors; of two with the same parameters the inner one."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    held = parameters | {name for name, _ in module.named_buffers(remove_duplicate=False)}
    read = parameters & _read(graph.nodes)
    found: dict[frozenset[str], tuple[fx.Node, fx.Node, fx.Node, dict[fx.Node, None]]] = {}
    for total, skip, branch in _sums(graph):
        region = _region(branch, total)
        own = parameters & _read_alone(graph, region)
        if own and own != read and not _leaves_an_input_unread(region):
            found.setdefault(frozenset(own), (total, skip, branch, region))
    names = _names([sorted(own) for own in found])
    return [
        _Residual(PlannedBlock(name, tuple(sorted(_going(graph, parts[-1], held)))), *parts)
        for name, parts in zip(names, found.values(), strict=True)
    ]


def _sums(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """Each sum with the identity beside what is added to it, as (total, skip, branch)."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    for total in graph.nodes:
        for skip, branch in _addends(total):
            if _is_made_of(branch, skip, places):
                yield total, skip, branch


def _addends(total: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Both ways to see a plain sum of two values of one shape and type: as (skip, branch)."""
    if total.op != "call_function" or operator_name(total.target) not in ("add", "add_"):
        return
    call = bind(total, lambda value: value)
    one, other = call.get("self"), call.get("other")
    are_values = all(isinstance(part, fx.Node) and part.op != "get_attr" for part in (one, other))
    if are_values and one is not other and call.get("alpha") in (None, 1) and _are_alike((one, other, total)):
        yield one, other
        yield other, one


def _are_alike(nodes: Sequence[fx.Node]) -> bool:
    """Whether they are tensors of one shape and type."""
    found = [node.meta.get("val") for node in nodes]
    values = [value for value in found if isinstance(value, Tensor)]
    return len(values) == len(found) and len({(shape_of(value), value.dtype) for value in values}) == 1


def _is_made_of(value: fx.Node, origin: fx.Node, places: dict[fx.Node, int]) -> bool:
    """Whether `origin` is among what a value was computed from."""
    waiting, seen = [value], {value}
    while waiting:
        node = waiting.pop()
        if node is origin:
            return True
        fresh = [one for one in node.all_input_nodes if one not in seen and places[one] >= places[origin]]
        seen.update(fresh)
        waiting += fresh
    return False


def _region(branch: fx.Node, total: fx.Node) -> dict[fx.Node, None]:
    """The nodes that only `total` reads, by way of `branch`, in the order in which they can be erased."""
    region: dict[fx.Node, None] = {}
    waiting = [branch]
    while waiting:
        node = waiting.pop()
        alone = all(user in region or (user is total and node is branch) for user in node.users)
        if node in region or node.op in ("placeholder", "output") or node.is_impure(impure_random=False) or not alone:
            continue
        region[node] = None
        waiting += node.all_input_nodes
    return region


def _read(nodes: Iterable[fx.Node]) -> set[str]:
    """The names of the tensors that are read by some nodes of a graph."""
    return {str(node.target) for node in nodes if node.op == "get_attr" and node.users}


def _read_alone(graph: fx.Graph, region: Collection[fx.Node]) -> set[str]:
    """What is read in a region and nowhere else."""
    return _read(region) - _read(node for node in graph.nodes if node not in region)


def _going(graph: fx.Graph, region: Collection[fx.Node], held: set[str]) -> set[str]:
    """What goes with a region: what it alone reads, and what else its layers hold unread, as counters of batches."""
    alone = _read_alone(graph, region)
    layers = {name.rpartition(".")[0] for name in alone}
    unread = held - _read(graph.nodes)
    return alone & held | {name for name in unread if name.rpartition(".")[0] in layers}


def _leaves_an_input_unread(region: Collection[fx.Node]) -> bool:
    inputs = {read for node in region for read in node.all_input_nodes if read.op == "placeholder"}
    return any(all(user in region for user in read.users) for read in inputs)


def _names(blocks: Sequence[Sequence[str]]) -> list[str]:
    """What blocks are called: by the module that they are; by its parts, `layers.0 (attn, norm1)`, where two are it."""
    owners = [list(dict.fromkeys(name.rpartition(".")[0] or name for name in block)) for block in blocks]
    common = [_common(block) for block in owners]
    return [
        prefix if prefix and common.count(prefix) == 1 else _by_parts(prefix, block)
        for prefix, block in zip(common, owners, strict=True)
    ]


def _by_parts(prefix: str, owners: Sequence[str]) -> str:
    rest = (owner.removeprefix(prefix).removeprefix(".").partition(".")[0] for owner in owners)
    parts = ", ".join(dict.fromkeys(part for part in rest if part))
    return f"{prefix} ({parts})" if prefix else parts


def _common(owners: Sequence[str]) -> str:
    """The module that all of these are parts of; empty where there is none."""
    first, *others = (owner.split(".") for owner in owners)
    shared = next((n for n in range(len(first), 0, -1) if all(other[:n] == first[:n] for other in others)), 0)
    return ".".join(first[:shared])


# -- what changes -----------------------------------------------------------------------------------------------------


def _take_out(graph: fx.Graph, found: _Residual) -> None:
    """Let whoever reads the sum read what the block was added to."""
    found.total.replace_all_uses_with(found.skip)
    graph.erase_node(found.total)
    for node in found.region:
        graph.erase_node(node)
