"""Selection by index tensors: constant ones move data, computed ones lock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from edgeprune.graph import binding, reasons
from edgeprune.graph.call import Call
from edgeprune.graph.labels import Layer, Value, core, remainders
from edgeprune.graph.ops.movement import lock_all, moved, whole_where_free
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting


def _rewrite_index(edit: Rewriting, call: Call) -> None:
    """Rows of the index tensors that select removed units go; the others are remapped into the kept slices."""
    x, indices = call.input, call["indices"]
    used = indexed(call)
    if all(edit.kept_size(x, d) == x.shape[d] for d in used) or any(indices[d].const is None for d in used):
        return  # what computed numbers look up is numbered anew where the numbers come in
    block: Any = torch.broadcast_tensors(*(indices[d].const for d in used))
    first = block_position(used)
    given = list(edit.raw(call, "indices"))
    for d, tensor in zip(used, block, strict=True):
        positions = tensor.numpy() % x.shape[d]
        for k in range(tensor.dim()):
            positions = positions.take(edit.kept(edit.result(call), first + k), axis=k)
        positions = np.searchsorted(edit.kept(x, d), positions)
        if len(used) == 1 and tensor.dim() == 1:
            edit.select(call, d, positions)
            return
        given[d] = edit.indices(call, positions)
    edit.set(call, "indices", given)


@operator("index", kind=Kind.ASSEMBLY, rewrite=_rewrite_index)
def index(analysis: Labelling, call: Call) -> Any:
    """Constant index tensors move data; with computed ones the indexed dims are locked."""
    x = call["self"]
    used = indexed(call)
    masked = any(is_mask(call, d) for d in used)
    if not masked and all(_is_constant(call, d) for d in used):
        whole_where_free(analysis, call, *(d for d in used if _counts_from_the_end(call["indices"][d])))
        return moved(analysis, _without_tables(analysis, call, used))
    for layer in x.layers:
        for dim in used:
            analysis.look_up(layer, dim, reasons.SEVERAL_INDICES)
    if masked:
        return lock_all(analysis, call, reasons.INDEXED)
    return analysis.value(call.shape, remainders(x, _dims_left(call, used), call.shape))


def _is_constant(call: Call, dim: int | None = None) -> bool:
    """Whether the index tensor (the one of `dim`, where there are several) is the same at all sizes."""
    index = call["index"] if dim is None else call["indices"][dim]
    given: Any = call.node.args[2] if dim is None else call.node.args[1]
    return index.const is not None and not binding.follows_sizes(given if dim is None else given[dim])


def _counts_from_the_end(index: Value) -> bool:
    return index.const is not None and bool((index.const < 0).any())


def _dims_left(call: Call, used: list[int]) -> dict[int, int]:
    """The dims that are not indexed -> where they stand in the result, around those of the index tensors."""
    block = max(len(call["indices"][d].shape) for d in used)
    first = block_position(used)
    rest = [d for d in range(len(call["self"].shape)) if d not in used]
    return {d: position if position < first else position + block for position, d in enumerate(rest)}


def _without_tables(analysis: Labelling, call: Call, used: list[int]) -> Call:
    """The call without labels on rows that are read again and again along several dims, which are locked.

    Rows of a table of relative positions, say: `table[i - j]` reads each of them in many rows and columns.
    """
    x, indices = call["self"], call["indices"]
    layers = []
    for layer in x.layers:
        dim = layer.dims[0] if len(layer.dims) == 1 and not layer.pending else None
        if dim in used and indices[dim].const.dim() > 1:
            chosen = core(layer).numpy()[indices[dim].const.numpy() % x.shape[dim]]
            if _recurs(chosen):
                analysis.lock(layer, reasons.SEVERAL_INDICES)
                continue
        layers.append(layer)
    return replace(call, args={**call.args, "self": Value(x.shape, tuple(layers), x.const, x.raw)})


def _recurs(labels: np.ndarray) -> bool:
    """Whether labels vary along several dims and some of them stand at several places there."""
    varying = [d for d in range(labels.ndim) if (labels != labels.take([0], axis=d)).any()]
    grid = labels[tuple(slice(None) if d in varying else 0 for d in range(labels.ndim))]
    return len(varying) > 1 and len(np.unique(grid)) < grid.size


def indexed(call: Call) -> list[int]:
    """The dims that have an index tensor."""
    return [d for d, index in enumerate(call["indices"]) if index is not None]


def block_position(used: list[int]) -> int:
    """Where the dims of the index tensors stand in the result: where the indexed dims were, if these are neighbours."""
    return used[0] if used == list(range(used[0], used[-1] + 1)) else 0


def is_mask(call: Call, dim: int) -> bool:
    """Whether the index tensor at `dim` is a mask: it stands for several dims, and its count of rows is computed."""
    given: Any = call.node.args[1]
    return given[dim].meta["val"].dtype in (torch.bool, torch.uint8)


def _rewrite_index_select(edit: Rewriting, call: Call) -> None:
    dim = call["dim"] % len(call.input.shape)
    kept = edit.kept(call.input, dim)
    if len(kept) != call.input.shape[dim] and call["index"].const is not None:
        chosen = call["index"].const.numpy().reshape(-1)
        edit.select(call, dim, np.searchsorted(kept, chosen[np.isin(chosen, kept)]))


@operator("index_select", kind=Kind.MOVE, rewrite=_rewrite_index_select)
def index_select(analysis: Labelling, call: Call) -> Any:
    """A constant index moves data; one that depends on the input or its size locks the dim."""
    if _is_constant(call):
        whole_where_free(analysis, call, *([call["dim"]] if _counts_from_the_end(call["index"]) else []))
        return moved(analysis, call)
    dim = call["dim"] % len(call["self"].shape)
    for layer in call["self"].layers:
        analysis.look_up(layer, dim, reasons.COMPUTED_INDEX)
    layers = [layer for layer in call["self"].layers if dim not in layer.dims]
    shape = call.shape
    narrow = [Layer(layer.labels.narrow(dim, 0, 1).expand(shape), layer.zero) for layer in layers]
    return analysis.value(shape, narrow)
