"""MIL's operators that move, join and choose elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.errors import InputError
from edgeprune.export.mil.registry import Call, rule


@rule("reshape")
def _reshape(call: Call) -> Tensor:
    """0 keeps the size at its place."""
    x = call["x"]
    return x.reshape([x.shape[dim] if size == 0 else size for dim, size in enumerate(call.integers("shape"))])


@rule("transpose")
def _transpose(call: Call) -> Tensor:
    return call["x"].permute(call.integers("perm"))


@rule("expand_dims")
def _expand_dims(call: Call) -> Tensor:
    x, axes = call["x"], call.integers("axes")
    n_dims = x.dim() + len(axes)
    for axis in sorted(axis % n_dims for axis in axes):
        x = x.unsqueeze(axis)
    return x


@rule("squeeze")
def _squeeze(call: Call) -> Tensor:
    x = call["x"]
    return x.squeeze(tuple(call.integers("axes", [dim for dim, size in enumerate(x.shape) if size == 1])))


@rule("flatten2d")
def _flatten2d(call: Call) -> Tensor:
    x = call["x"]
    rows = 1
    for size in x.shape[: call.integers("axis", [1])[0] % x.dim()]:
        rows *= size
    return x.reshape(rows, -1)


@rule("concat")
def _concat(call: Call) -> Tensor:
    """One after the other, or, interleaved, the first row of each, then the second of each."""
    parts, axis = _of_one_type(call.inputs["values"]), call.integers("axis")[0]
    if not call.flag("interleave"):
        return torch.cat(parts, axis)
    axis %= parts[0].dim()
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)


@rule("stack")
def _stack(call: Call) -> Tensor:
    return torch.stack(_of_one_type(call.inputs["values"]), call.integers("axis", [0])[0])


def _of_one_type(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.to(values[0].dtype) for value in values]


@rule("split")
def _split(call: Call) -> Sequence[Tensor]:
    x, axis = call["x"], call.integers("axis")[0]
    sizes = call.integers("split_sizes")
    return torch.split(x, sizes or x.shape[axis] // call.integers("num_splits")[0], axis)


@rule("slice_by_index")
def _slice_by_index(call: Call) -> Tensor:
    """As Python's slices, also with negative steps; `squeeze_mask` takes one place and drops the dim."""
    x = call["x"]
    n_dims = x.dim()
    begins, ends = call.integers("begin"), call.integers("end")
    steps = call.integers("stride", [1] * n_dims)
    no = [0] * n_dims
    open_begin, open_end, squeezed = (call.integers(f"{name}_mask", no) for name in ("begin", "end", "squeeze"))
    for dim in range(n_dims):
        if squeezed[dim]:
            places = [begins[dim] % x.shape[dim]]
        else:
            begin, end = (None if open_begin[dim] else begins[dim]), (None if open_end[dim] else ends[dim])
            places = list(range(x.shape[dim]))[slice(begin, end, steps[dim])]
        x = x.index_select(dim, torch.tensor(places, dtype=torch.int64))
    return x.squeeze(tuple(dim for dim in range(n_dims) if squeezed[dim]))


@rule("slice_by_size")
def _slice_by_size(call: Call) -> Tensor:
    x = call["x"]
    for dim, (begin, size) in enumerate(zip(call.integers("begin"), call.integers("size"), strict=True)):
        x = x.narrow(dim, begin, x.shape[dim] - begin if size == -1 else size)
    return x


@rule("gather")
def _gather(call: Call) -> Tensor:
    x, indices, axis = call["x"], call["indices"].long(), call.integers("axis", [0])[0]
    if call.integers("batch_dims", [0])[0]:
        raise InputError("gather with batch_dims is not known")
    axis %= x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    chosen = x.index_select(axis, indices.reshape(-1))
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@rule("gather_along_axis")
def _gather_along_axis(call: Call) -> Tensor:
    x, axis = call["x"], call.integers("axis", [0])[0]
    indices = call["indices"].long()
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@rule("scatter")
def _scatter(call: Call) -> Tensor:
    """Rows of `updates` are added to those of `data` that `indices` name, or take their places."""
    x, updates, axis = call["data"], call["updates"], call.integers("axis", [0])[0]
    indices, mode = call["indices"].long().reshape(-1), call.text("mode", "add")
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if mode == "add":
        return x.index_add(axis, indices, updates)
    if mode == "update":
        return x.index_copy(axis, indices, updates)
    raise InputError(f"scatter by {mode} is not known")


@rule("tile")
def _tile(call: Call) -> Tensor:
    return call["x"].repeat(call.integers("reps"))


@rule("reverse")
def _reverse(call: Call) -> Tensor:
    x = call["x"]
    return x.flip(call.integers("axes", range(x.dim())))


@rule("pad")
def _pad(call: Call) -> Tensor:
    """Pairs for the last dims."""
    x, pairs = call["x"], call.integers("pad")
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}[call.text("mode", "constant")]
    backward = [pairs[k + side] for k in range(len(pairs) - 2, -1, -2) for side in (0, 1)]
    if mode == "constant":
        return F.pad(x, backward, value=call.number("constant_val"))
    while len(backward) > 2 and backward[-2:] == [0, 0]:  # PyTorch reflects the last dims alone
        backward = backward[:-2]
    return F.pad(x, backward, mode=mode)


@rule("fill")
def _fill(call: Call) -> Tensor:
    return call["value"].expand(call.integers("shape"))


@rule("shape")
def _shape(call: Call) -> Tensor:
    return torch.tensor(call["x"].shape)


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Tensor:
    return F.pixel_shuffle(call["x"], call.integers("upscale_factor")[0])


@rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Tensor:
    return F.pixel_unshuffle(call["x"], call.integers("downscale_factor")[0])


@rule("upsample_nearest_neighbor")
def _upsample_nearest(call: Call) -> Tensor:
    return F.interpolate(call["x"], scale_factor=_factors(call), mode="nearest")


@rule("upsample_bilinear")
def _upsample_bilinear(call: Call) -> Tensor:
    if call.has("half_pixel_centers") and not call.flag("half_pixel_centers") and not call.flag("align_corners"):
        raise InputError("upsample_bilinear without half pixels is not known")
    return F.interpolate(
        call["x"], scale_factor=_factors(call), mode="bilinear", align_corners=call.flag("align_corners", True)
    )


def _factors(call: Call) -> tuple[float, float]:
    return call.number("scale_factor_height", 1.0), call.number("scale_factor_width", 1.0)
