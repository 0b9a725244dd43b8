"""What a class's own forward takes of a cut, so that `apply_to` can put it back: parts of one call stay equally wide.

A slim program says its sizes where a forward may compute them: `x.chunk(2, 1)` gives two halves whatever was kept.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from edgeprune.graph.call import Call
from edgeprune.graph.capture import Program
from edgeprune.graph.edit import Edit
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.labels import Value, core
from edgeprune.graph.lift import unlifted
from edgeprune.graph.lines import written_numbers
from edgeprune.graph.names import GATHER
from edgeprune.graph.ops.movement import SPLIT_DIMS, SPLITS

# Operators whose sizes a module says in an attribute, or that take them from what comes in.
_SAID = {
    *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("layer_norm", "rms_norm", "group_norm", "lstm", "gru", "rnn_tanh", "rnn_relu"),
    *("scaled_dot_product_attention", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("expand", "broadcast_to", "unflatten"),
}
_VIEWS = {"view", "reshape", "_unsafe_view"}


@dataclass(frozen=True, slots=True, eq=False)
class Evened:
    """The order in which a group's units go, `n_parts` at a time; the last `floor` of them stay."""

    order: np.ndarray
    floor: int
    n_parts: int


def not_taken(graph: ChannelGraph, keep: np.ndarray) -> set[int]:
    """The numbers of the groups of which this cut takes more than a class's own forward does.

    Args:
        graph: the channel groups.
        keep: bool `(n_labels,)`, which units stay.
    """
    ready = graph.analysis.program
    edit = Edit(unlifted(ready) or Program.adopt(ready).editable_module(), graph.analysis, keep)
    calls = list(graph.analysis.calls.values())
    before = [_form(edit.node(call)) for call in calls]
    readers = [set(edit.node(call).users) for call in calls]
    edit.rewrite()
    around = _around(graph) if any(call.name in _VIEWS for call in calls) else {}
    group_of = graph.group_numbers()
    found = set(group_of[_cut_where_unregistered(graph, keep)].tolist())
    for call, form, known in zip(calls, before, readers, strict=True):
        more = [user for user in edit.node(call).users if user not in known and _name(user) == user.name]
        for value in _values(edit, call) if more else _untaken(edit, call, form, around):
            units = _units(value)
            found.update(group_of[units[(units > 0) & ~keep[units]]].tolist())
    return found - {-1}


def _cut_where_unregistered(graph: ChannelGraph, keep: np.ndarray) -> np.ndarray:
    """The units that go of tensors that are neither parameters nor buffers: a forward reads those as they were."""
    analysis = graph.analysis
    specs = analysis.program.graph_signature.input_specs
    constants = (str(spec.target) for spec in specs if spec.kind is InputKind.CONSTANT_TENSOR)
    names = {analysis.tensors.first_name(name) for name in constants}
    sources = [source for source in analysis.sources.values() if source.kind == "tensor" and source.name in names]
    units = np.concatenate([np.zeros(0, np.int64), *(analysis.solver.canonical[source.ids] for source in sources)])
    return np.unique(units[(units > 0) & ~keep[units]])


def _units(value: Value) -> np.ndarray:
    labels = [core(layer).numpy().ravel() for layer in value.layers]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *labels]))


def evened(graph: ChannelGraph, group: int, order: np.ndarray, worth: np.ndarray, floor: int) -> Evened | None:
    """The order with as many units of every part of a call taken at a time; None where no order keeps them equal.

    Args:
        graph: the channel groups.
        group: the number of one.
        order: its units, those that go first in front, `(n_units,)`.
        worth: what they are worth, `(n_units,)`.
        floor: how many at the end of `order` stay.
    """
    units = graph.groups[group].units
    rows = _rows(graph, units)
    if rows is None:
        return Evened(order, floor, 1)
    kinds, kind_of = np.unique(rows, axis=0, return_inverse=True)
    kind_of = kind_of.reshape(-1)
    members = [order[kind_of[order] == kind] for kind in range(len(kinds))]
    n_each = len(members[0])
    if any(len(own) != n_each for own in members) or kinds.sum(0).any():
        return None
    blocks = np.stack(members, 1)  # (n_each, n_parts): the least units of all parts, then the next ones
    last = np.zeros(len(units), dtype=bool)
    last[order[len(order) - floor :]] = True
    blocks = blocks[np.lexsort((worth[blocks].mean(1), last[blocks].any(1)))]
    return Evened(blocks.reshape(-1), int(last[blocks].any(1).sum()) * len(kinds), len(kinds))


def even_step(step: int, n_parts: int, n_units: int) -> int:
    """Units to go at a time so that every part loses as many, and `step` of them where the parts are wide enough."""
    return step * n_parts if 2 * step * n_parts <= n_units else math.lcm(step, n_parts)


def _rows(graph: ChannelGraph, units: np.ndarray) -> np.ndarray | None:
    """How often each unit is in each part of the calls that have equal parts, `(n_units, n)`, less its least number.

    A row of zeros is a unit that all parts have alike. None where all are such.
    """
    columns: list[np.ndarray] = []
    for parts in _equal_parts(graph):
        counts = np.stack([_counted(labels, units) for labels in parts], 1)
        counts = counts * len(parts) - counts.sum(1, keepdims=True)
        if counts.any() and not any(np.array_equal(counts, other) for other in columns):
            columns.append(counts)
    return np.concatenate(columns, 1) if columns else None


def _counted(labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """How many of `labels` are each of `units`."""
    position = np.searchsorted(units, labels).clip(max=len(units) - 1)
    return np.bincount(position[units[position] == labels], minlength=len(units))


def _equal_parts(graph: ChannelGraph) -> Iterator[list[np.ndarray]]:
    """The labels of every part of a call that gives equal parts of a dim with units."""
    for call in graph.analysis.calls.values():
        if call.name not in SPLITS or call.input.raw:
            continue
        dim = _split_dim(call)
        sizes = [part.shape[dim] for part in _parts(graph.analysis.env[call.node])]
        for layer in call.input.on(dim):
            if layer.dims == (dim,) and len(set(sizes)) == 1:
                yield np.split(core(layer).numpy(), len(sizes))


def _parts(result: Any) -> Sequence[Value]:
    return [part for part in tree_leaves(result) if isinstance(part, Value)]


def _split_dim(call: Call) -> int:
    dim: int = SPLIT_DIMS.get(call.name, call.get("dim", 0)) % len(call.input.shape)
    return dim


def _form(node: fx.Node) -> tuple[Any, ...]:
    """A call as it stands in a graph; a gather of kept input features counts as the input."""
    return node.target, fx.node.map_arg((node.args, dict(node.kwargs)), _name)


def _name(node: fx.Node) -> str:
    if node.target is torch.ops.aten.index_select.default:
        source, _, index = node.args
        if isinstance(source, fx.Node) and isinstance(index, fx.Node) and str(index.target).startswith(GATHER):
            return source.name
    return node.name


def _untaken(
    edit: Edit, call: Call, before: tuple[Any, ...], around: Mapping[str, Sequence[fx.Node]]
) -> Sequence[Value]:
    """The values whose cut a class's own forward does not follow at one call."""
    result, after = edit.result(call), _form(edit.node(call))
    if after != before and not (_takes(edit, call, before) and _is_computed(call.node, before, after)):
        return _values(edit, call)
    sizes = _own_sizes(edit, call, result) if call.name in _VIEWS else []
    if not sizes:
        return []
    # A size of what the forward has may stand here, `b, c, h, w = x.shape` and then `y.view(b, c, h, w)`.
    env = edit.analysis.env
    others = [env[node] for node in around.get(_module_of(call.node), ()) if node < call.node]
    pairs = itertools.product(sizes, others)
    return [value for dim, other in pairs for value in (other, result) if _is_parted(edit, (result, dim), other)]


def _is_computed(node: fx.Node, before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether none of the sizes that a cut changes stands as a number in the user's line."""
    if before[0] is not after[0]:
        return True
    pairs = zip(tree_leaves(before[1]), tree_leaves(after[1]), strict=False)
    changed = {old for old, new in pairs if type(old) is int and old != new}
    return not (changed and changed & written_numbers(node))


def _own_sizes(edit: Edit, call: Call, result: Value) -> list[int]:
    """The dims of a view whose size is written out and is none of the viewed value's."""
    sizes: Any = edit.node(call).args[-1]
    written = enumerate(sizes if isinstance(sizes, (list, tuple)) else ())
    dims = [dim for dim, size in written if isinstance(size, int) and size != -1]
    return [dim for dim in dims if result.shape[dim] not in call.input.shape]


def _is_parted(edit: Edit, place: tuple[Value, int], other: Value) -> bool:
    """Whether another value has a dim of the same size that a cut leaves another size."""
    result, dim = place
    same = [d for d in range(len(other.shape)) if other.shape[d] == result.shape[dim]]
    return any(edit.kept_size(other, d) != edit.kept_size(result, dim) for d in same)


def _values(edit: Edit, call: Call) -> list[Value]:
    """What a call takes and gives."""
    return [value for value in (*call.values, *tree_leaves(edit.result(call))) if isinstance(value, Value)]


def _module_of(node: fx.Node) -> str:
    """The name of the innermost module whose forward has the line."""
    return next(reversed(_modules_of(node)), "")


def _modules_of(node: fx.Node) -> list[str]:
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _around(graph: ChannelGraph) -> dict[str, list[fx.Node]]:
    """What each module's forward has at hand, by its name: what comes in, what its lines make and hand on."""
    env = graph.analysis.env
    found: dict[str, dict[fx.Node, None]] = defaultdict(dict)
    for node in graph.analysis.calls:
        modules = _modules_of(node)
        for other in (n for n in node.all_input_nodes if n.op == "call_function"):
            shared = [path for path in modules if path in _modules_of(other)]
            for path in (*shared[-1:], *(path for path in modules if path not in shared)):
                found[path][other] = None
        found[_module_of(node)][node] = None
    return {path: [node for node in nodes if isinstance(env[node], Value)] for path, nodes in found.items()}


def _takes(edit: Edit, call: Call, before: tuple[Any, ...]) -> bool:
    """Whether a class's own forward does what a call was rewritten to."""
    node = edit.node(call)
    if call.name in SPLITS:
        return _is_even(edit, call)
    if node.target is not before[0]:
        return False
    if call.name in _VIEWS:
        return not _merges(edit, call)
    same_tensors = [_name(n) for n in node.all_input_nodes] == _names(before)
    return call.name in _SAID and same_tensors


def _names(form: tuple[Any, ...]) -> list[str]:
    names = (leaf for leaf in tree_leaves(form[1]) if isinstance(leaf, str))
    return list(dict.fromkeys(names))


def _is_even(edit: Edit, call: Call) -> bool:
    """Whether parts of one size are of one size still."""
    dim = _split_dim(call)
    sizes = {(part.shape[dim], edit.kept_size(part, dim)) for part in _parts(edit.result(call))}
    return len(sizes) == 1


def _merges(edit: Edit, call: Call) -> bool:
    """Whether units of one dim became a larger dim together with others, of a size that stands in the line."""
    x, result = call.input, edit.result(call)
    cut = [size for dim, size in enumerate(x.shape) if edit.kept_size(x, dim) < size]
    node = edit.node(call)
    sizes: Any = node.args[-1]
    return any(
        isinstance(size, int) and size != -1 and edit.kept_size(result, dim) < result.shape[dim] > max(cut, default=0)
        for dim, size in enumerate(sizes if isinstance(sizes, (list, tuple)) else ())
    )
