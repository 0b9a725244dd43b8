"""Operators that move numbers without changing them, of whole dims."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axes_of, axis_of
from edgeprune.formats.onnxin.freeing import common_batch, freed_expansion, freed_target
from edgeprune.formats.onnxin.known import Size, is_symbol, product
from edgeprune.formats.onnxin.registry import rule

_FAR = 10**8  # an end that stands for the last; a free size would be bounded by it
_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@rule("Reshape")
def reshape(call: Call) -> Tensor:
    """Another shape of the same numbers; a batch that the file states becomes the input's."""
    x, target = call.tensor(0), call.ints(1)
    if not call.attribute("allowzero", 0):
        target = [x.shape[dim] if not is_symbol(size) and size == 0 else size for dim, size in enumerate(target)]
    freed = freed_target(call, x)
    return x.reshape(freed if freed is not None else target)


@rule("Flatten")
def flatten(call: Call) -> Tensor:
    """Two dims: all before the axis, and all from it on."""
    x, axis = call.tensor(0), call.attribute("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    if axis == 1:
        return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@rule("Transpose")
def transpose(call: Call) -> Tensor:
    """Dims in another order."""
    x = call.tensor(0)
    return x.permute(list(call.attribute("perm", range(x.dim() - 1, -1, -1))))


@rule("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Without dims of size one."""
    x, axes = call.tensor(0), call.listed("axes", 1)
    if axes is None:
        axes = [dim for dim, size in enumerate(x.shape) if not is_symbol(size) and size == 1]
    chosen = axes_of(axes, x.dim())
    for axis in chosen:
        call.refuse_if(
            is_symbol(x.shape[axis]) or x.shape[axis] != 1, "a dim of size one", f"{x.shape[axis]} of axis {axis}"
        )
    for axis in sorted(chosen, reverse=True):
        x = x.squeeze(axis)
    return x


@rule("Unsqueeze")
def unsqueeze(call: Call) -> Tensor:
    """With new dims of size one."""
    x, axes = call.tensor(0), call.listed("axes", 1) or []
    for axis in sorted(axes_of(axes, x.dim() + len(axes))):
        x = x.unsqueeze(axis)
    return x


@rule("Expand")
def expand(call: Call) -> Tensor:
    """Dims of one repeated up to a shape; what is larger than it stays, and a batch in it becomes the input's."""
    x = call.operand(0, "weight")
    return expanded(x, freed_expansion(call, x, call.ints(1)))


def expanded(x: Tensor, target: list[Size]) -> Tensor:
    """`x` with its dims of one repeated up to `target`."""
    target = [1] * (x.dim() - len(target)) + target
    own = [1] * (len(target) - x.dim()) + list(x.shape)
    sizes = [have if not is_symbol(want) and want == 1 else want for have, want in zip(own, target, strict=True)]
    return x.expand(sizes)


@rule("Tile")
def tile(call: Call) -> Tensor:
    """Each dim repeated as a whole."""
    return call.tensor(0).repeat(call.ints(1))


@rule("Concat")
def concat(call: Call) -> Tensor:
    """Tensors beside each other along an axis."""
    parts = [call.operand(position, "weight") for position in range(len(call))]
    axis = axis_of(call.attribute("axis"), parts[0].dim())
    return torch.cat(common_batch(call, parts, axis), axis)


@rule("Split")
def split(call: Call) -> tuple[Tensor, ...]:
    """Parts along an axis: of stated sizes, or as many as there are outputs."""
    x, sizes = call.tensor(0), call.listed("split", 1)
    axis = axis_of(call.attribute("axis", 0), x.dim())
    if sizes is not None:
        return torch.split(x, sizes, axis)
    n_parts = call.attribute("num_outputs", len(call.node.outputs))
    each = -(-x.shape[axis] // n_parts)
    return torch.split(x, each, axis)


@rule("Slice")
def slice_(call: Call) -> Tensor:
    """From a start to an end, by a step, along some axes."""
    x = call.tensor(0)
    starts, ends = call.listed("starts", 1) or [], call.listed("ends", 2) or []
    axes = axes_of(call.listed("axes", 3) or list(range(len(starts))), x.dim())
    steps = call.ints(4) if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _backwards(x, start, end, axis, step) if step < 0 else _forwards(x, start, end, axis, step)
    return x


def _forwards(x: Tensor, start: Size, end: Size, axis: int, step: int) -> Tensor:
    end = None if not is_symbol(end) and end >= _FAR else end
    places: list[slice] = [slice(None)] * axis
    return x[(*places, slice(start, end, step))]


def _backwards(x: Tensor, start: Size, end: Size, axis: int, step: int) -> Tensor:
    size = int(x.shape[axis])
    picked = range(size)[slice(start, None if end < -size else end, step)]
    if list(picked) == list(range(size - 1, -1, -1)):
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(list(picked)))


@rule("Pad")
def pad(call: Call) -> Tensor:
    """More at both ends of each dim, or less where it is negative."""
    x, pads = call.tensor(0), call.listed("pads", 1) or []
    axes = axes_of(call.ints(3), x.dim()) if call.has(3) else list(range(x.dim()))
    value = call.attribute("value", call.scalar(2) if call.has(2) else 0.0)
    mode = call.text("mode", "constant")
    call.refuse_if(mode not in _PAD_MODES, f"a mode of {', '.join(_PAD_MODES)}", mode)
    flat = _flat_pads(x.dim(), axes, pads)
    if not flat:
        return x
    if mode == "constant":
        return F.pad(x, flat, "constant", value)
    return _mirrored(x, flat, _PAD_MODES[mode])


def _flat_pads(n_dims: int, axes: list[int], pads: list[Size]) -> list[Size]:
    """Both ends of each dim as PyTorch has them: from the last dim to the first that is padded."""
    pairs = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    first = min((axis for axis, pair in pairs.items() if any(bool(size != 0) for size in pair)), default=n_dims)
    return [size for axis in range(n_dims - 1, first - 1, -1) for size in pairs.get(axis, (0, 0))]


def _mirrored(x: Tensor, flat: list[Size], mode: str) -> Tensor:
    """PyTorch pads the last dims of an input that has two before them."""
    n_dims = len(flat) // 2
    before, padded = list(x.shape[: x.dim() - n_dims]), list(x.shape[x.dim() - n_dims :])
    grown = [size + flat[-2 * k - 2] + flat[-2 * k - 1] for k, size in enumerate(padded)]
    if len(before) == 2:
        return F.pad(x, flat, mode)
    return F.pad(x.reshape([1, product(before), *padded]), flat, mode).reshape([*before, *grown])


@rule("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Channels laid out as blocks of pixels."""
    x, block = call.tensor(0), int(call.attribute("blocksize"))
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, channels, height, width = x.shape
    parted = x.reshape(n, block, block, channels // block**2, height, width)
    return parted.permute(0, 3, 4, 1, 5, 2).reshape(n, channels // block**2, height * block, width * block)


@rule("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Blocks of pixels laid out as channels."""
    x, block = call.tensor(0), int(call.attribute("blocksize"))
    n, channels, height, width = x.shape
    parted = x.reshape(n, channels, height // block, block, width // block, block)
    return parted.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * block**2, height // block, width // block)
