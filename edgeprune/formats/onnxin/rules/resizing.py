"""Images made larger or smaller, and read at places that are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axes_of
from edgeprune.formats.onnxin.known import is_symbol
from edgeprune.formats.onnxin.registry import rule

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_SAMPLED = {"linear": "bilinear", "cubic": "bicubic"}  # as opset 20 calls them
_HALF = {"half_pixel", "pytorch_half_pixel"}


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis that is resized: from `size` numbers to `wanted`, by `scale`."""

    axis: int
    size: int
    wanted: int
    scale: float


@rule("Upsample")
def upsample(call: Call) -> Tensor:
    """Images made larger by factors."""
    scales = call.listed("scales", 1) or []
    x = call.tensor(0)
    return _resized(call, x, _by_scales(x, list(range(x.dim())), scales), "asymmetric", "floor")


@rule("Resize")
def resize(call: Call) -> Tensor:
    """Images made larger or smaller, by factors or to a size."""
    x = call.tensor(0)
    if call.opset < 11:
        return _resized(call, x, _by_scales(x, list(range(x.dim())), call.ints(1)), "asymmetric", "floor")
    call.refuse_if(bool(call.attribute("antialias", 0)), "no antialias", "antialias=1")
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    call.refuse_if(policy != "stretch", "keep_aspect_ratio_policy stretch", policy)
    axes = axes_of(call.attribute("axes", list(range(x.dim()))), x.dim())
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    rounding = call.text("nearest_mode", "round_prefer_floor")
    return _resized(call, x, _asked(call, x, axes), coordinates, rounding)


def _asked(call: Call, x: Tensor, axes: list[int]) -> list[_Axis]:
    if call.has(2) and len(call.ints(2)):
        return _by_scales(x, axes, call.ints(2))
    wanted = [(axis, size) for axis, size in zip(axes, call.ints(3), strict=True) if _differs(call, x, axis, size)]
    return [_Axis(axis, int(x.shape[axis]), int(size), int(size) / int(x.shape[axis])) for axis, size in wanted]


def _differs(call: Call, x: Tensor, axis: int, size: object) -> bool:
    """Whether an axis is resized; a batch that follows the input's is none, and one that the file states neither."""
    if axis == 0 and call.base and is_symbol(x.shape[0]) or axis == 0 and call.base and x.shape[0] != size:
        return False
    return bool(x.shape[axis] != size)


def _by_scales(x: Tensor, axes: list[int], scales: list[float]) -> list[_Axis]:
    pairs = [(axis, float(scale)) for axis, scale in zip(axes, scales, strict=True) if float(scale) != 1.0]
    return [_Axis(a, int(x.shape[a]), math.floor(int(x.shape[a]) * scale), scale) for a, scale in pairs]


def _resized(call: Call, x: Tensor, axes: list[_Axis], coordinates: str, rounding: str) -> Tensor:
    mode = call.text("mode", "nearest")
    if not axes:
        return x
    if mode == "nearest":
        return _nearest(call, x, axes, coordinates, rounding)
    if mode == "cubic":
        return _cubic(call, x, axes, coordinates)
    call.refuse_if(mode != "linear", "a mode nearest, linear or cubic", mode)
    return _linear(call, x, axes, coordinates)


# -- nearest


def _nearest(call: Call, x: Tensor, axes: list[_Axis], coordinates: str, rounding: str) -> Tensor:
    """By PyTorch's own operator where it picks the same places, else by their indices."""
    picked = {axis: _places(call, axis, coordinates, rounding) for axis in axes}
    if 3 <= x.dim() <= 5 and all(_is_floor(axis, places) for axis, places in picked.items()):
        sizes = {axis.axis: axis.wanted for axis in axes}
        return F.interpolate(x, [sizes.get(dim, int(x.shape[dim])) for dim in range(2, x.dim())], mode="nearest")
    for axis, places in picked.items():
        x = x.index_select(axis.axis, call.made(f"places_{axis.axis}", torch.tensor(places)))
    return x


def _is_floor(axis: _Axis, places: list[int]) -> bool:
    """Whether a dim of an image is resized to the places that PyTorch picks."""
    return axis.axis >= 2 and places == [k * axis.size // axis.wanted for k in range(axis.wanted)]


def _places(call: Call, axis: _Axis, coordinates: str, rounding: str) -> list[int]:
    exact = [_coordinate(call, axis, k, coordinates) for k in range(axis.wanted)]
    rounded = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda value: math.ceil(value - 0.5),
        "round_prefer_ceil": lambda value: math.floor(value + 0.5),
    }.get(rounding)
    if rounded is None:
        call.refuse_if(True, "a nearest_mode that is known", rounding)
        raise AssertionError
    return [min(max(int(rounded(value)), 0), axis.size - 1) for value in exact]


def _coordinate(call: Call, axis: _Axis, place: int, coordinates: str) -> float:
    """Where a place of the result lies in the input."""
    if coordinates == "asymmetric":
        return place / axis.scale
    if coordinates == "align_corners":
        return place * (axis.size - 1) / (axis.wanted - 1) if axis.wanted > 1 else 0.0
    if coordinates == "pytorch_half_pixel" and axis.wanted == 1:
        return 0.0
    if coordinates == "half_pixel_symmetric":
        adjusted = axis.wanted / (axis.scale * axis.size)
        return axis.size / 2 * (1 - adjusted) + (place + 0.5) / axis.scale - 0.5
    call.refuse_if(coordinates not in _HALF, "a coordinate_transformation_mode that is known", coordinates)
    return (place + 0.5) / axis.scale - 0.5


# -- linear and cubic


def _linear(call: Call, x: Tensor, axes: list[_Axis], coordinates: str) -> Tensor:
    if _is_plain(x, axes, coordinates) and x.dim() - 2 in _LINEAR:
        return _interpolated(x, axes, _LINEAR[x.dim() - 2], coordinates == "align_corners")
    for axis in axes:
        matrix = torch.zeros(axis.wanted, axis.size, dtype=x.dtype)
        for place in range(axis.wanted):
            exact = min(max(_coordinate(call, axis, place, coordinates), 0.0), axis.size - 1.0)
            low = min(math.floor(exact), axis.size - 1)
            matrix[place, low] += 1 - (exact - low)
            matrix[place, min(low + 1, axis.size - 1)] += exact - low
        held = call.made(f"weights_{axis.axis}", matrix)
        x = F.linear(x.movedim(axis.axis, -1), held).movedim(-1, axis.axis)
    return x


def _cubic(call: Call, x: Tensor, axes: list[_Axis], coordinates: str) -> Tensor:
    call.refuse_if(
        x.dim() != 4 or not _is_plain(x, axes, coordinates), "cubic over images, by their centres", coordinates
    )
    call.refuse_if(call.attribute("cubic_coeff_a", -0.75) != -0.75, "cubic_coeff_a -0.75", "another")
    call.refuse_if(bool(call.attribute("exclude_outside", 0)), "exclude_outside 0", 1)
    return _interpolated(x, axes, "bicubic", coordinates == "align_corners")


def _is_plain(x: Tensor, axes: list[_Axis], coordinates: str) -> bool:
    """Whether PyTorch's own operator counts the same coordinates."""
    exact = all(math.isclose(axis.wanted, axis.scale * axis.size, rel_tol=1e-6) for axis in axes)
    known = coordinates == "align_corners" or (coordinates in _HALF and exact)
    return known and all(axis.axis >= 2 for axis in axes) and all(axis.wanted > 1 for axis in axes)


def _interpolated(x: Tensor, axes: list[_Axis], mode: str, align: bool) -> Tensor:
    sizes = {axis.axis: axis.wanted for axis in axes}
    wanted = [sizes.get(dim, int(x.shape[dim])) for dim in range(2, x.dim())]
    return F.interpolate(x, wanted, mode=mode, align_corners=align)


@rule("GridSample")
def grid_sample(call: Call) -> Tensor:
    """Images `(batch, channels, height, width)`, or volumes, read at places `(batch, rows, columns, 2)`, -1 to 1."""
    x, grid = call.tensor(0), call.tensor(1)
    if call.constant(1) is not None and grid.shape[0] == 1:  # in a file of batch 1
        grid = grid.expand(x.shape[0], *grid.shape[1:])
    mode = call.text("mode", "linear")
    padding, corners = call.text("padding_mode", "zeros"), bool(call.attribute("align_corners", 0))
    return F.grid_sample(x, grid, _SAMPLED.get(mode, mode), padding, corners)
