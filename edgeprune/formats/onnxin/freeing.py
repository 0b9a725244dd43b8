"""Freeing the batch that a file states: shapes in which it stands as a number follow the input's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.known import Size, is_symbol, product

BATCH = ""  # the name under which the shapes of a file tell the batch that it states


def grown_dims(shape: Sequence[Size], base: Sequence[int]) -> list[int]:
    """The dims that are not of the size which they have at the batch that the file states."""
    return [dim for dim, (have, was) in enumerate(zip(shape, base, strict=True)) if is_symbol(have) or have != was]


def freed_target(call: Call, x: Tensor) -> list[Size] | None:
    """The shape that a Reshape gives at another batch than the file's; None where nothing is to be freed.

    E.g. (b, 512, 1, 1) to (1, 512) in a file of batch 1 is (b, 512), and (49, b, 96) to (49, 3, 32) is (49, 3 b, 32):
    the batch stays in its place in memory.
    """
    base, target = call.base_of(call.node.inputs[0]), call.base_of(call.node.outputs[0])
    if base is None or target is None or len(base) != x.dim() or 0 in base:
        return None
    grown = grown_dims(x.shape, base)
    if len(grown) != 1:
        return None
    dim = grown[0]
    place = _place_of(base, dim, target, call.base[BATCH][0])
    if place is None:
        return None
    freed: list[Size] = list(target)
    freed[place] = _scaled(target[place], x.shape[dim], base[dim])
    return freed


def _place_of(base: Sequence[int], dim: int, target: Sequence[int], batch: int) -> int | None:
    """The dim of `target` that dim `dim` of `base` becomes a part of, which holds the `batch` that the file states."""
    if base[dim] == batch and list(target[: dim + 1]) == list(base[: dim + 1]):
        return dim  # as all up to it stays: (1, 1, 2, 64) to (1, 1, 128)
    before = product(base[:dim])
    for place in range(len(target)):
        if product(target[:place]) == before:
            # What lies before it may have swallowed it, e.g. (17 b, 768) of (17, b, 12, 64) where b is 1.
            is_joined = len(target) - place < len(base) - dim and target[place] != base[dim]
            return place - 1 if dim > 0 and place > 0 and is_joined else _batch_among(target, place, base[dim], batch)
        if product(target[: place + 1]) > before:
            return place
    return len(target) - 1 if target else None


def _batch_among(target: Sequence[int], place: int, size: int, batch: int) -> int:
    """Which of the dims that a dim of this size is parted into is the batch; e.g. (5 b, 8) to (5, 1, 8) the second."""
    end = place
    while end < len(target) and product(target[place : end + 1]) <= size:
        end += 1
    return next((k for k in range(place, end) if target[k] == batch), place)


def freed_rows(call: Call, x: Tensor) -> Tensor | None:
    """What a Gather by constant indices takes of a flat batch, in each row as in those of the file; None for others.

    PyTorch writes `as_strided` so: of (b * n,) the indices (1, c, h, w) give (b, c, h, w) where the file states 1.
    """
    base, index = call.base_of(call.node.inputs[0]), call.constant(1)
    if base is None or index is None or len(base) != 1 or x.dim() != 1 or not grown_dims(x.shape, base):
        return None
    batch = call.base[BATCH][0]
    if not index.dim() or index.shape[0] != batch or base[0] % batch or not index.numel():
        return None
    size = base[0] // batch
    places = call.known(1).values.astype(np.int64).reshape(batch, -1) % base[0] - size * np.arange(batch)[:, None]
    row = places[0]
    if (places != row).any() or row.min() < 0 or row.max() >= size:
        return None
    rows = x.reshape(-1, size)
    if not np.array_equal(row, np.arange(size)):
        rows = rows.index_select(1, call.made("places", torch.from_numpy(row)))
    return rows.reshape(-1, *index.shape[1:])


def freed_expansion(call: Call, x: Tensor, target: list[Size]) -> list[Size]:
    """The shape that an Expand repeats up to, in which a dim that has grown with the batch is as large as the input's.

    E.g. (4, 1) to (4, 8) in a file of batch 4 is (b, 1) to (b, 8).
    """
    base = call.base_of(call.node.inputs[0])
    if base is None or len(base) != x.dim():
        return target
    freed = list(target)
    for dim in grown_dims(x.shape, base):
        place = dim - x.dim() + len(target)
        if place >= 0 and not is_symbol(target[place]) and target[place] == base[dim]:
            freed[place] = x.shape[dim]
    return freed


def _scaled(size: int, have: Size, was: int) -> Size:
    if size % was == 0:
        return have if size == was else have * (size // was)
    if was % size == 0:
        return have // (was // size)
    return have * size // was


def common_batch(call: Call, parts: list[Tensor], axis: int) -> list[Tensor]:
    """Tensors that are to stand beside each other, those of the file's own batch repeated for that of the others."""
    bases = [_base_shape(call, position, part) for position, part in enumerate(parts)] if call.base else []
    known = [base for base in bases if base is not None]
    if len(known) != len(parts):
        return parts
    grown = [grown_dims(part.shape, base) for part, base in zip(parts, known, strict=True)]
    wanted = {dim: part.shape[dim] for part, dims in zip(parts, grown, strict=True) for dim in dims}
    wanted.pop(axis, None)
    return [_repeated(part, wanted, dims) for part, dims in zip(parts, grown, strict=True)]


def _base_shape(call: Call, position: int, part: Tensor) -> tuple[int, ...] | None:
    if call.constant(position) is not None:
        return tuple(part.shape)
    base = call.base_of(call.node.inputs[position])
    return base if base is not None and len(base) == part.dim() else None


def _repeated(part: Tensor, sizes: dict[int, Size], grown: list[int]) -> Tensor:
    """A tensor repeated up to these sizes along the dims that have not grown by themselves."""
    wanted = {dim: size for dim, size in sizes.items() if dim not in grown}
    if not wanted or any(part.shape[dim] != 1 for dim in wanted):
        return part
    return part.expand([wanted.get(dim, size) for dim, size in enumerate(part.shape)])
