"""Reading and writing at index tensors along one dim, which stays whole; every other dim passes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import fx

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value, not_zero, remainder
from edgeprune.graph.ops.indexing import block_position, indexed, is_mask
from edgeprune.graph.ops.movement import lock_all, rewrite_padding_index
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling


def _tables(analysis: Labelling, call: Call) -> list[Value]:
    """The operands that have the result's rank; those of another size along a dim than the first stay whole there."""
    rank = len(call["self"].shape)
    letters = tuple(f"d{d}" for d in range(rank))
    tables = [Operand(value, letters) for value in _operands(analysis, call) if len(value.shape) == rank]
    unlike = [d for d in range(rank) if len({table.value.shape[d] for table in tables}) > 1]
    for table in tables:
        for d in {call["dim"] % rank, *unlike}:
            table.fix(analysis, letters[d], reasons.COMPUTED_INDEX)
    unify(analysis, tables)
    return [table.value for table in tables]


def _operands(analysis: Labelling, call: Call) -> list[Value]:
    """The tensors of the call; an index that is a computed constant is sliced with the others."""
    index, node = call["index"], call.node.args[2]
    assert isinstance(node, fx.Node)
    sliceable = index.const is not None and node.op == "call_function"
    return [analysis.constant(node) if value is index and sliceable else value for value in call.values]


def _passed(analysis: Labelling, call: Call, tables: list[Value], zero_of: list[Value]) -> Value:
    """The units of all dims but the indexed one; they read zero where every tensor of `zero_of` does."""
    rank = len(call["self"].shape)
    unlike = {call["dim"] % rank, *(d for value in tables for d in range(rank) if value.shape[d] != call.shape[d])}
    dims = {d: d for d in range(rank) if d not in unlike}
    layers: dict[tuple[int, ...], Layer] = {}
    for layer in itertools.chain.from_iterable(value.layers for value in tables):
        found = remainder(layer, dims, call.shape)
        if found is not None and found.dims not in layers:
            zero = not found.pending and all(_zero_over(value, layer.dims) for value in zero_of)
            layers[found.dims] = Layer(found.labels, zero)
    return analysis.value(call.shape, list(layers.values()))


def _zero_over(value: Value, dims: tuple[int, ...]) -> bool:
    return any(layer.zero for layer in value.layers if layer.dims == dims)


@operator("gather", kind=Kind.ASSEMBLY)
def gather(analysis: Labelling, call: Call) -> Value:
    """`y[i, j, k] = x[i, index[i, j, k], k]`."""
    return _passed(analysis, call, _tables(analysis, call), [call["self"]])


@operator("index_copy", kind=Kind.ASSEMBLY)
@operator(
    "index_add", "index_fill", "index_reduce", "scatter", "scatter_add", "scatter_reduce", kind=Kind.LOOKUP
)  # fmt: skip
def write_by_index(analysis: Labelling, call: Call) -> Value:
    """A copy of the first tensor with places along one dim written, added to or reduced over; zeros give zero."""
    source = call.get("source", call.get("src", call.get("value", 0)))
    zero_of = [call["self"], source] if isinstance(source, Value) else [call["self"]]
    if not isinstance(source, Value) and source != 0:
        zero_of = [Value(call.shape)]  # a number is written: nothing reads zero for sure
    return _passed(analysis, call, _tables(analysis, call), zero_of)


@operator("bucketize", kind=Kind.LOOKUP)
def bucketize(analysis: Labelling, call: Call) -> Value:
    """The interval of each element, which for zero may be any; all boundaries are compared with."""
    boundaries = call["boundaries"]
    for layer in boundaries.layers:
        analysis.lock(layer, reasons.ALL_UNITS)
    elements = call["self"]
    return not_zero(elements) if isinstance(elements, Value) else Value(call.shape)


@operator("index_put", "_unsafe_index_put", kind=Kind.LOOKUP)
def put(analysis: Labelling, call: Call) -> Value:
    """`x[index] = values`: with index tensors the indexed dims stay whole; with a mask of numbers all dims may go."""
    x, values, indices = call["self"], call["values"], call["indices"]
    used = indexed(call)
    if len(used) == 1 and is_mask(call, used[0]):
        return _put_by_mask(analysis, call, indices[used[0]])
    if any(is_mask(call, d) for d in used):
        result: Value = lock_all(analysis, call, reasons.INDEXED)
        return result
    return _put_by_tensors(analysis, x, values, [indices[d] for d in used], used)


def _put_by_tensors(analysis: Labelling, x: Value, values: Value, tables: list[Value], used: list[int]) -> Value:
    """The index tensors' own dims, k0, k1, ..., stand where the indexed dims of `x` were."""
    block = [f"k{k}" for k in range(max(len(table.shape) for table in tables))]
    dims = {d: d for d in range(len(x.shape)) if d not in used}
    target = Operand(x, tuple(f"d{d}" for d in range(len(x.shape))))
    first, rest = block_position(used), [target.letters[d] for d in dims]
    letters = (*rest[:first], *block, *rest[first:])
    source = Operand(values, letters[len(letters) - len(values.shape) :])
    for letter in block:
        source.fix(analysis, letter, reasons.SEVERAL_INDICES)
    for d in used:
        target.fix(analysis, target.letters[d], reasons.SEVERAL_INDICES)
    unify(analysis, [target, source])
    return analysis.value(x.shape, list(_beside_written(target, source, dims)))


def _beside_written(target: Operand, source: Operand, dims: dict[int, int]) -> Iterator[Layer]:
    """The target's layers along the dims that are not indexed; they read zero where what is written does too."""
    for layer in target.value.layers:
        kept = remainder(layer, dims, target.value.shape)
        if kept is not None:
            yield Layer(kept.labels, kept.zero and _writes_zero(source, target.over(layer)))


def _writes_zero(source: Operand, over: tuple[str, ...]) -> bool:
    """Whether what is written reads zero where units along these letters are removed."""
    constant = source.value.const
    if constant is not None and not bool(constant.any()):
        return True
    return source.reads_zero(over)


def _put_by_mask(analysis: Labelling, call: Call, mask: Value) -> Value:
    x, values = call["self"], call["values"]
    if max(values.shape, default=1) > 1 or mask.shape != x.shape[: len(mask.shape)]:
        result: Value = lock_all(analysis, call, reasons.INDEXED)
        return result
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    unify(analysis, [Operand(x, letters), Operand(mask, letters[: len(mask.shape)])])
    zero = values.const is not None and not bool(values.const.any())
    return analysis.value(x.shape, [Layer(layer.labels, layer.zero and zero) for layer in x.layers])


@operator(
    "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only", kind=Kind.LOOKUP, rewrite=rewrite_padding_index
)
def embedding_bag(analysis: Labelling, call: Call) -> list[Any]:
    """Sums, means or maxima of rows that are looked up; columns are channels."""
    weight, shape = call["weight"], call.shape[0]
    for layer in weight.layers:
        analysis.look_up(layer, 0, reasons.LOOKED_UP)
    for value in call.values:
        if value is not weight:
            for layer in value.layers:
                analysis.lock(layer, reasons.LOOKED_UP)
    columns = [layer for layer in weight.layers if layer.dims == (1,)]
    result = analysis.value(shape, [Layer(layer.labels[0].expand(shape), layer.zero) for layer in columns])
    return [result, *map(Value, call.shape[1:])]
