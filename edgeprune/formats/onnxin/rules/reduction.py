"""Operators over whole dims."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axes_of, axis_of
from edgeprune.formats.onnxin.registry import rule


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _all(x: Tensor, axes: list[int], keep: bool, least: bool) -> Tensor:
    if x.dtype is torch.bool:
        return (torch.amin if least else torch.amax)(x.to(torch.uint8), axes, keep).to(torch.bool)
    return (torch.amin if least else torch.amax)(x, axes, keep)


_REDUCED: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: (
        x.mean(axes, keep)
        if x.is_floating_point()
        else torch.div(x.sum(axes, keep), _count(x, axes), rounding_mode="trunc")
    ),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "ReduceMax": lambda x, axes, keep: _all(x, axes, keep, False),
    "ReduceMin": lambda x, axes, keep: _all(x, axes, keep, True),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: (x * x).sum(axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
}
_FRACTIONS = {"ReduceL2", "ReduceLogSum", "ReduceLogSumExp"}  # what they give of whole numbers is cut to whole ones


def _count(x: Tensor, axes: list[int]) -> int:
    total = 1
    for axis in axes:
        total *= x.shape[axis]
    return total


@rule(*_REDUCED)
def reduce(call: Call) -> Tensor:
    """Sums, means and the like over some axes, or over all; of the input's type."""
    x, axes = call.tensor(0), call.listed("axes", 1)
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return x
    chosen = axes_of(axes, x.dim()) if axes else list(range(x.dim()))
    if not chosen:
        return x
    given = x.double() if call.node.op in _FRACTIONS and not x.is_floating_point() else x
    reduced = _REDUCED[call.node.op](given, chosen, bool(call.attribute("keepdims", 1)))
    return reduced if reduced.dtype is x.dtype else reduced.to(x.dtype)


@rule("ArgMax", "ArgMin")
def arg_max(call: Call) -> Tensor:
    """The place of the largest or the least number along an axis."""
    call.refuse_if(bool(call.attribute("select_last_index", 0)), "the first of equal ones", "select_last_index=1")
    x, axis = call.tensor(0), call.attribute("axis", 0)
    function = torch.argmax if call.node.op == "ArgMax" else torch.argmin
    return function(x, axis_of(axis, x.dim()), bool(call.attribute("keepdims", 1)))


@rule("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """The largest or least numbers along an axis, and their places."""
    x, count = call.tensor(0), int(call.scalar(1))
    values, places = torch.topk(
        x, count, call.attribute("axis", -1), bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    )
    return values, places
