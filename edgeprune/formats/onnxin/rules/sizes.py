"""Arithmetic of sizes: the same operators on numbers that are known, among which the batch is a symbol."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edgeprune.formats.onnxin.call import Call, axes_of, axis_of
from edgeprune.formats.onnxin.known import Known
from edgeprune.formats.onnxin.nodes import torch_dtype
from edgeprune.formats.onnxin.registry import size_rule

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Mod": lambda a, b: a % b,
    "Pow": lambda a, b: a**b, "Min": torch.sym_min, "Max": torch.sym_max,
}  # fmt: skip
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b, "Less": lambda a, b: a < b,
    "GreaterOrEqual": lambda a, b: a >= b, "LessOrEqual": lambda a, b: a <= b,
    "And": lambda a, b: bool(a) and bool(b), "Or": lambda a, b: bool(a) or bool(b),
    "Xor": lambda a, b: bool(a) != bool(b),
}  # fmt: skip
_SINGLE: dict[str, Callable[[Any], Any]] = {
    "Floor": math.floor, "Ceil": math.ceil, "Neg": lambda a: -a, "Not": lambda a: not a, "Identity": lambda a: a,
    "Abs": abs, "Sqrt": torch.sym_sqrt if hasattr(torch, "sym_sqrt") else math.sqrt,
}  # fmt: skip


def _each(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """A function of numbers, on arrays of objects."""
    if all(array.shape == () for array in arrays):
        return Known.of(function(*(array[()] for array in arrays))).values
    pairs = np.broadcast_arrays(*arrays)
    result = np.empty(pairs[0].shape, dtype=object)
    for place in np.ndindex(*result.shape):
        result[place] = function(*(pair[place] for pair in pairs))
    return result


@size_rule(*_ARITHMETIC)
def arithmetic(call: Call) -> Known:
    """Sums, products and the like."""
    total = call.known(0).values
    for position in range(1, len(call)):
        total = _each(_ARITHMETIC[call.node.op], total, call.known(position).values)
    dtype = call.known(0).dtype
    is_cut = call.node.op == "Pow" and not dtype.is_floating_point  # a power is of its base's type
    return Known(_each(torch.sym_int, total) if is_cut else total, dtype)


@size_rule("Div")
def divide(call: Call) -> Known:
    """Quotients; those of whole numbers without their fraction."""
    left, right = call.known(0), call.known(1)
    function = (lambda a, b: a / b) if left.dtype.is_floating_point else _whole_quotient
    return Known(_each(function, left.values, right.values), left.dtype)


def _whole_quotient(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if abs(a) < 2**52 else a // b
    return a // b


@size_rule(*_COMPARED)
def compare(call: Call) -> Known:
    """Truth values."""
    return Known(_each(_COMPARED[call.node.op], call.known(0).values, call.known(1).values), torch.bool)


@size_rule(*_SINGLE)
def single(call: Call) -> Known:
    """A function of each number."""
    known = call.known(0)
    return Known(_each(_SINGLE[call.node.op], known.values), known.dtype)


@size_rule("Where")
def where(call: Call) -> Known:
    """One of two numbers by a truth value."""
    picked = _each(lambda c, a, b: a if c else b, *(call.known(position).values for position in range(3)))
    return Known(picked, call.known(1).dtype)


@size_rule("Cast")
def cast(call: Call) -> Known:
    """Another type."""
    dtype, known = torch_dtype(call.attribute("to"), "attribute 'to'"), call.known(0)
    if dtype is torch.bool:
        return Known(_each(bool, known.values), dtype)
    convert = torch.sym_float if dtype.is_floating_point else torch.sym_int
    return Known(_each(lambda a: convert(int(a) if isinstance(a, bool) else a), known.values), dtype)


@size_rule("Shape")
def shape(call: Call) -> Known:
    """How many sizes there are."""
    sizes = list(call.known(0).values.shape)
    return Known.of(sizes[slice(call.attribute("start", 0), call.attribute("end"))])


@size_rule("Size")
def size(call: Call) -> Known:
    """How many numbers there are."""
    return Known.of(int(call.known(0).values.size))


@size_rule("Gather")
def gather(call: Call) -> Known:
    """Some of the sizes."""
    known = call.known(0)
    picked = np.take(known.values, call.known(1).values.astype(np.int64), axis=call.attribute("axis", 0))
    return Known(picked if isinstance(picked, np.ndarray) else Known.of(picked).values, known.dtype)


@size_rule("Concat")
def concat(call: Call) -> Known:
    """Sizes beside each other."""
    parts = [call.known(position) for position in range(len(call))]
    return Known(np.concatenate([part.values for part in parts], call.attribute("axis")), parts[0].dtype)


@size_rule("Slice")
def slice_(call: Call) -> Known:
    """A part of the sizes."""
    known = call.known(0)
    starts, ends = call.listed("starts", 1) or [], call.listed("ends", 2) or []
    axes = axes_of(call.listed("axes", 3) or list(range(len(starts))), known.values.ndim)
    steps = call.ints(4) if call.has(4) else [1] * len(starts)
    values = known.values
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -values.shape[axis] else end
        values = values[(*[slice(None)] * axis, slice(start, stop, step))]
    return Known(values, known.dtype)


@size_rule("Split")
def split(call: Call) -> tuple[Known, ...]:
    """Sizes in parts."""
    known, sizes = call.known(0), call.listed("split", 1)
    axis = axis_of(call.attribute("axis", 0), known.values.ndim)
    if sizes is None:
        each = -(-known.values.shape[axis] // len(call.node.outputs))
        places = list(range(each, known.values.shape[axis], each))
    else:
        places = [int(place) for place in np.cumsum(sizes)[:-1]]
    return tuple(Known(part, known.dtype) for part in np.split(known.values, places, axis))


@size_rule("Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten", "Expand", "Tile")
def move(call: Call) -> Known:
    """The same numbers in another shape, by the rule for tensors on their places."""
    known = call.known(0)
    return Known(_moved(call, known.values), known.dtype)


def _moved(call: Call, values: np.ndarray) -> np.ndarray:
    op = call.node.op
    if op == "Squeeze":
        axes = call.listed("axes", 1)
        return values.squeeze(None if axes is None else tuple(axes))
    if op == "Unsqueeze":
        return np.expand_dims(values, tuple(call.listed("axes", 1) or ()))
    if op == "Transpose":
        return values.transpose(call.attribute("perm"))
    if op == "Flatten":
        axis = call.attribute("axis", 1)
        return values.reshape(math.prod(values.shape[:axis]), -1)
    return _to_target(op, values, [int(number) for number in call.ints(1)])


def _to_target(op: str, values: np.ndarray, target: list[int]) -> np.ndarray:
    if op == "Expand":
        return np.broadcast_to(values, np.broadcast_shapes(values.shape, tuple(target)))
    if op == "Tile":
        return np.tile(values, target)
    return values.reshape([values.shape[dim] if number == 0 else number for dim, number in enumerate(target)])


@size_rule("ReduceProd", "ReduceSum", "ReduceMin", "ReduceMax")
def reduce(call: Call) -> Known:
    """All numbers as one."""
    known = call.known(0)
    function = {"ReduceProd": lambda a, b: a * b, "ReduceSum": lambda a, b: a + b, "ReduceMin": torch.sym_min,
                "ReduceMax": torch.sym_max}[call.node.op]  # fmt: skip
    call.refuse_if(known.values.ndim > 1, "a list of sizes", f"{known.values.ndim} dims")
    values = list(known.values.flat)
    total = values[0] if values else (1 if call.node.op == "ReduceProd" else 0)
    for value in values[1:]:
        total = function(total, value)
    keep = bool(call.attribute("keepdims", 1)) and known.values.ndim == 1
    return Known.of([total] if keep else total, known.dtype)


@size_rule("ConstantOfShape")
def constant_of_shape(call: Call) -> Any:
    """A few equal numbers, where their count is a number."""
    from edgeprune.formats.onnxin.registry import RULES

    sizes = call.ints(0)
    value = call.attribute("value", np.zeros(1, np.float32)).reshape(-1)[:1]
    if not all(isinstance(size, int) for size in sizes) or len(sizes) > 1 or math.prod(sizes) > 64:
        return RULES["ConstantOfShape"](call)
    return Known(np.full(sizes, value[0].item(), dtype=object), torch.from_numpy(value).dtype)


@size_rule("Range")
def range_(call: Call) -> Any:
    """Whole numbers, where their count is a number."""
    from edgeprune.formats.onnxin.registry import RULES

    numbers = [call.scalar(position) for position in range(3)]
    if not all(isinstance(number, int) for number in numbers) or len(range(*numbers)) > 64:
        return RULES["Range"](call)
    return Known.of(list(range(*numbers)), call.known(0).dtype)
