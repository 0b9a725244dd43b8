"""Images resized: to the nearest number by its place, linearly along one dim after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edgeprune.export.c.graph import Call
from edgeprune.export.c.layers import around
from edgeprune.export.c.places import by_places
from edgeprune.export.c.rules import Lowering, options, refusal, rule

_OF_TODAY = 11  # the operator set from which on a Resize says how it counts


@dataclass(frozen=True, slots=True, eq=False)
class _Dim:
    """How each number along a dim is made: of the numbers at `lower` and `upper`, of the latter by this `share`."""

    axis: int
    size: int
    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray

    @property
    def is_as_it_was(self) -> bool:
        """Whether nothing changes."""
        return (
            len(self.lower) == self.size and not self.share.any() and bool((self.lower == np.arange(self.size)).all())
        )


def is_nearest(node: onnx.NodeProto) -> bool:
    """Whether a Resize only moves numbers."""
    return bool(options(node, mode="nearest")["mode"] == "nearest")


@rule("Resize")
def _resize(low: Lowering, node: onnx.NodeProto) -> None:
    if is_nearest(node):
        by_places(low, node)
        return
    low.check_float(node, 1)
    _check(node)
    x, shape = low.view(node.input[0]), low.net.shapes[node.output[0]]
    dims = [_dim(low, node, axis) for axis in range(len(shape))]
    dims = [dim for dim in dims if not dim.is_as_it_was]
    if not dims:
        low.show(node, x)
        return
    dims.sort(key=lambda dim: len(dim.lower) / dim.size)  # what shrinks comes first
    for dim in dims:
        sizes = [len(dim.lower) if axis == dim.axis else size for axis, size in enumerate(x.shape)]
        out = low.result(node) if dim is dims[-1] else low.made.new(sizes, "float")
        places = low.made.hold(dim.lower, "int32_t"), low.made.hold(dim.upper, "int32_t")
        outer, size, inner = around(x, dim.axis)
        numbers = map(str, (outer, size, len(dim.lower), inner))
        x = low.made.add(out, Call("resize_f32", (x, *places, low.made.hold(dim.share, "float"), out, *numbers)))


def _check(node: onnx.NodeProto) -> None:
    """Raise InputError for a way to resize that there is no C for."""
    told = options(node, mode="", antialias=0, coordinate_transformation_mode="half_pixel")
    stretched = options(node, keep_aspect_ratio_policy="stretch")["keep_aspect_ratio_policy"]
    if told["mode"] != "linear":
        raise refusal(node, f"of mode {told['mode']}")
    if told["antialias"] or stretched != "stretch" or told["coordinate_transformation_mode"] not in _COUNTED:
        why = "with antialias" if told["antialias"] else f"by {told['coordinate_transformation_mode']}, {stretched}"
        raise refusal(node, why)


def _dim(low: Lowering, node: onnx.NodeProto, axis: int) -> _Dim:
    """How a dim is resized."""
    size, count = low.net.shapes[node.input[0]][axis], low.net.shapes[node.output[0]][axis]
    usual = "half_pixel" if low.net.opset >= _OF_TODAY else "asymmetric"
    mode = options(node, coordinate_transformation_mode=usual)["coordinate_transformation_mode"]
    places = _COUNTED[mode](np.arange(count, dtype=np.float64), size, count, _scale(low, node, axis, count / size))
    places = np.clip(places, 0.0, size - 1.0)
    lower = np.floor(places).astype(np.int64)
    return _Dim(axis, size, lower, np.minimum(lower + 1, size - 1), (places - lower).astype(np.float32))


def _scale(low: Lowering, node: onnx.NodeProto, axis: int, usual: float) -> float:
    """By how much a dim is stretched: as it is told, else as its sizes tell."""
    scales = low.constant(node, 2 if low.net.opset >= _OF_TODAY else 1)
    if scales is None or not scales.size:
        return usual
    rank = len(low.net.shapes[node.input[0]])
    axes = [one % rank for one in options(node, axes=None)["axes"] or range(rank)]
    return float(scales.ravel()[axes.index(axis)]) if axis in axes else 1.0


def _half_pixel(at: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return (at + 0.5) / scale - 0.5


def _half_pixel_of_several(at: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return _half_pixel(at, size, count, scale) if count > 1 else np.zeros_like(at)


def _half_pixel_symmetric(at: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return size / 2 * (1 - count / (scale * size)) + _half_pixel(at, size, count, scale)


def _corners(at: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return at * ((size - 1) / (count - 1)) if count > 1 else np.zeros_like(at)


def _asymmetric(at: np.ndarray, size: int, count: int, scale: float) -> np.ndarray:
    return at / scale


_COUNTED = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _half_pixel_of_several,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "align_corners": _corners,
    "asymmetric": _asymmetric,
}
