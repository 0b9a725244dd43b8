"""Reading and writing at index tensors along one dim, which stays whole; every other dim passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.graph import reasons
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value, remainder
from edgeprune.graph.ops.registry import Call, operator

if TYPE_CHECKING:
    from edgeprune.graph.analysis import Analysis


def _tables(analysis: Analysis, call: Call) -> list[Value]:
    """The operands that have the result's rank; those of another size along a dim than the first stay whole there."""
    rank = len(call["self"].shape)
    tables = [value for value in call.values if len(value.shape) == rank]
    dim = call["dim"] % rank
    unlike = [d for d in range(rank) if len({value.shape[d] for value in tables}) > 1]
    for value in tables:
        for layer in value.layers:
            for d in {dim, *unlike}:
                analysis.fix(layer, d, reasons.COMPUTED_INDEX)
    letters = tuple(f"d{d}" for d in range(rank))
    unify(analysis, [Operand(value, letters) for value in tables])
    return tables


def _passed(analysis: Analysis, call: Call, tables: list[Value], zero_of: list[Value]) -> Value:
    """The units of all dims but the indexed one; they read zero where every tensor of `zero_of` does."""
    rank, dim = len(call["self"].shape), call["dim"] % len(call["self"].shape)
    dims = {d: d for d in range(rank) if d != dim and all(v.shape[d] == call.shape[d] for v in tables)}
    layers: list[Layer] = []
    for value in tables:
        for layer in value.layers:
            found = remainder(layer, dims, call.shape)
            if found is not None and all(found.dims != other.dims for other in layers):
                zero = all(any(y.zero for y in v.layers if y.dims == layer.dims) for v in zero_of)
                layers.append(Layer(found.labels, zero and not found.pending))
    return analysis.value(call.shape, layers)


@operator("gather")
def gather(analysis: Analysis, call: Call) -> Value:
    """`y[i, j, k] = x[i, index[i, j, k], k]`."""
    return _passed(analysis, call, _tables(analysis, call), [call["self"]])


@operator("index_add", "index_copy", "index_fill", "scatter", "scatter_add")
def write_by_index(analysis: Analysis, call: Call) -> Value:
    """A copy of the first tensor with places along one dim written or added to."""
    source = call.get("source", call.get("src", call.get("value", 0)))
    zero_of = [call["self"], source] if isinstance(source, Value) else [call["self"]]
    if not isinstance(source, Value) and source != 0:
        zero_of = [Value(call.shape)]  # a number is written: nothing reads zero for sure
    return _passed(analysis, call, _tables(analysis, call), zero_of)


@operator("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(analysis: Analysis, call: Call) -> list[Any]:
    """Sums, means or maxima of rows that are looked up; columns are channels."""
    weight, shape = call["weight"], call.shape[0]
    for layer in weight.layers:
        analysis.fix(layer, 0, reasons.LOOKED_UP)
    for value in call.values:
        if value is not weight:
            for layer in value.layers:
                analysis.lock(layer, reasons.LOOKED_UP)
    columns = [layer for layer in weight.layers if layer.dims == (1,)]
    result = analysis.value(shape, [Layer(layer.labels[0].expand(shape), layer.zero) for layer in columns])
    return [result, *map(Value, call.shape[1:])]
