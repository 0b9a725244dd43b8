"""Operators that read and write by indices."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axis_of
from edgeprune.formats.onnxin.freeing import freed_rows
from edgeprune.formats.onnxin.known import Size, is_symbol, product
from edgeprune.formats.onnxin.nodes import torch_dtype
from edgeprune.formats.onnxin.registry import rule


@rule("Gather")
def gather(call: Call) -> Tensor:
    """Slices of an axis by their numbers; of a table by ids that come in, an embedding."""
    constant = call.constant(0)
    x = call.operand(0, "weight")
    axis = axis_of(call.attribute("axis", 0), x.dim())
    rows = freed_rows(call, x)
    if rows is not None:
        return rows
    if call.is_known(1):
        return _of_known(call, x, axis)
    index = call.tensor(1)
    if constant is not None and constant.dim() == 2 and axis == 0 and constant.is_floating_point():
        return F.embedding(index.long(), x)
    index = _from_front(index.long(), x.shape[axis])
    flat = x.index_select(axis, index.reshape(-1))
    return flat.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _of_known(call: Call, x: Tensor, axis: int) -> Tensor:
    known = call.known(1)
    size = x.shape[axis]
    if not known.values.shape:
        return x.select(axis, call.scalar(1))
    if not known.is_fixed:
        index = call.tensor(1).reshape(-1)
        return x.index_select(axis, index).reshape([*x.shape[:axis], *known.values.shape, *x.shape[axis + 1 :]])
    places = [int(place) % size if place < 0 else int(place) for place in known.values.flat]
    if places and places == list(range(places[0], places[0] + len(places))):
        picked = x.narrow(axis, places[0], len(places))
    else:
        picked = x.index_select(axis, call.made("indices", torch.tensor(places, dtype=torch.int64)))
    if known.values.ndim == 1:
        return picked
    return picked.reshape([*x.shape[:axis], *known.values.shape, *x.shape[axis + 1 :]])


def _from_front(index: Tensor, size: Size) -> Tensor:
    """Indices of which negative ones count from the end."""
    return torch.where(index < 0, index + size, index)


@rule("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """A number for each index, from the same place in all other dims."""
    x = call.tensor(0)
    axis = axis_of(call.attribute("axis", 0), x.dim())
    return torch.gather(x, axis, _from_front(call.tensor(1).long(), x.shape[axis]))


@rule("GatherND")
def gather_nd(call: Call) -> Tensor:
    """Slices by tuples of indices."""
    x, index = call.tensor(0), call.tensor(1).long()
    n_batch, depth = call.attribute("batch_dims", 0), int(index.shape[-1])
    if n_batch == 0:
        return x[tuple(_from_front(index[..., k], x.shape[k]) for k in range(depth))]
    call.refuse_if(n_batch != 1, "batch_dims of 0 or 1", n_batch)
    rows = torch.arange(x.shape[0]).reshape([-1] + [1] * (index.dim() - 2))
    return x[(rows, *(_from_front(index[..., k], x.shape[k + 1]) for k in range(depth)))]


@rule("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Tensor:
    """Numbers written to the places of indices."""
    x, updates = call.tensor(0), call.tensor(2)
    axis = axis_of(call.attribute("axis", 0), x.dim())
    index, mode = _from_front(call.tensor(1).long(), x.shape[axis]), call.text("reduction", "none")
    if mode == "none":
        return torch.scatter(x, axis, index, updates)
    kinds = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    call.refuse_if(mode not in kinds, "a reduction that is known", mode)
    return torch.scatter_reduce(x, axis, index, updates, kinds[mode])


@rule("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """Slices written to the places of tuples of indices."""
    x, index, updates = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    mode = call.text("reduction", "none")
    call.refuse_if(mode not in ("none", "add"), "a reduction none or add", mode)
    places: list[Tensor | None] = [_from_front(index[..., k], x.shape[k]) for k in range(int(index.shape[-1]))]
    return torch.index_put(x, places, updates, accumulate=mode == "add")


@rule("OneHot")
def one_hot(call: Call) -> Tensor:
    """A dim in which one place stands out for each index."""
    index, depth, values = call.tensor(0).long(), int(call.scalar(1)), call.tensor(2)
    axis = axis_of(call.attribute("axis", -1), index.dim() + 1)
    places = torch.arange(depth).reshape([-1 if dim == axis else 1 for dim in range(index.dim() + 1)])
    return torch.where(_from_front(index, depth).unsqueeze(axis) == places, values[1], values[0])


@rule("Trilu")
def trilu(call: Call) -> Tensor:
    """The upper or the lower triangle."""
    function = torch.triu if call.attribute("upper", 1) else torch.tril
    return function(call.tensor(0), int(call.scalar(1)) if call.has(1) else 0)


@rule("CumSum")
def cumsum(call: Call) -> Tensor:
    """Sums of all up to each place along an axis."""
    x, axis = call.tensor(0), int(call.scalar(1))
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = total - x if call.attribute("exclusive", 0) else total
    return total.flip(axis) if call.attribute("reverse", 0) else total


@rule("Range")
def range_(call: Call) -> Tensor:
    """Numbers from a start to a limit by a step."""
    start, limit, step = (call.scalar(position) for position in range(3))
    return torch.arange(start, limit, step, dtype=call.known(0).dtype)


@rule("ConstantOfShape")
def constant_of_shape(call: Call) -> Tensor:
    """The same number in each place of a shape."""
    value = call.attribute("value", np.zeros(1, np.float32)).reshape(-1)[:1]
    sizes = call.ints(0)
    call.refuse_if(not any(map(is_symbol, sizes)) and product(sizes) > 2**28, "fewer than 2**28 numbers", sizes)
    return torch.full(sizes, value[0].item(), dtype=torch.from_numpy(value).dtype)


@rule("EyeLike")
def eye_like(call: Call) -> Tensor:
    """Ones on a diagonal."""
    x = call.tensor(0)
    rows, columns = (int(size) for size in x.shape)
    code = call.attribute("dtype")
    dtype = x.dtype if code is None else torch_dtype(code, "attribute 'dtype'")
    return torch.from_numpy(np.eye(rows, columns, call.attribute("k", 0))).to(dtype)
