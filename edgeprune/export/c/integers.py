"""Operators of a quantised file on integers alone; what has no such form is computed in floats, as the file says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx

from edgeprune.export.c.expressions import Expression
from edgeprune.export.c.graph import Argument, Call, Held, View, literal
from edgeprune.export.c.layers import conv_weights, linear_weights, transposed_weights
from edgeprune.export.c.movement import put
from edgeprune.export.c.places import BY_PLACES
from edgeprune.export.c.pools import adjacent, axes_of, check_pool
from edgeprune.export.c.quantities import Goal, Grid, goal_of, grid_of, multiplied, rescaling, weights_of
from edgeprune.export.c.resizing import is_nearest
from edgeprune.export.c.rules import RULES, Lowering, Quantized, options, rule
from edgeprune.export.c.walks import aligned, walk_of
from edgeprune.export.c.windows import pool_window, window_of

IntegerRule = Callable[[Lowering, onnx.NodeProto], bool]
INTEGER_RULES: dict[str, IntegerRule] = {}
_MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Slice", "Split", "Expand",
          "Gather", *BY_PLACES)  # fmt: skip
_SUM_BITS = 30  # of a multiplier where two products are added


def integer_rule(*operators: str) -> Callable[[IntegerRule], IntegerRule]:
    """Register a function that lowers an operator on integers, or says that it cannot."""

    def register(function: IntegerRule) -> IntegerRule:
        INTEGER_RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def on_integers(low: Lowering, node: onnx.NodeProto) -> bool:
    """Lower an operator whose input stands for floats as integers, where there is a form for it."""
    has = node.input and node.input[0] in low.quantized
    return bool(has) and node.op_type in INTEGER_RULES and INTEGER_RULES[node.op_type](low, node)


# --- to integers and back


@rule("DequantizeLinear")
def _dequantize(low: Lowering, node: onnx.NodeProto) -> None:
    """Nothing is computed before something reads floats."""
    grid = grid_of(low, node)
    low.quantized[node.output[0]] = Quantized(low.view(node.input[0]), grid.scale, grid.zero)


@rule("QuantizeLinear")
def _quantize(low: Lowering, node: onnx.NodeProto) -> None:
    """A function of integers is a table of 256 bytes."""
    grid, found = grid_of(low, node), low.expression(node.input[0])
    if found.base in low.quantized:
        low.views[node.output[0]] = _by_table(low, low.quantized[found.base], found, grid)
        return
    x, out = low.view(node.input[0]), low.result(node)
    given: tuple[Argument, ...] = (
        x, out, str(out.n_elements), literal(grid.scale), str(grid.zero), str(grid.low), str(grid.high),
    )  # fmt: skip
    low.made.add(out, Call("quantize_u8" if grid.type == "uint8_t" else "quantize_s8", given))


def _by_table(low: Lowering, x: Quantized, function: Expression, grid: Grid) -> View:
    before = _grid(x)
    table = grid.integers(function.function(before.floats))
    if np.array_equal(table, np.arange(256)) and grid.type == x.view.type:
        return x.view
    out = low.made.new(x.view.shape, grid.type)
    held = low.made.hold(table, "uint8_t")
    return low.made.add(out, Call("table_u8", (_bytes(x.view), held, _bytes(out), str(out.n_elements))), over=[x.view])


def _bytes(view: View) -> View:
    """The same bytes as unsigned ones."""
    return View(view.value, view.shape, "uint8_t", view.start)


def _grid(x: Quantized) -> Grid:
    bounds = np.iinfo(np.uint8 if x.view.type == "uint8_t" else np.int8)
    return Grid(x.scale, x.zero, x.view.type, bounds.min, bounds.max)


# --- layers


@integer_rule("Conv")
def _conv(low: Lowering, node: onnx.NodeProto) -> bool:
    floats, bias = conv_weights(low, node)
    found = _weighted(low, node, 0, bias)
    if found is None:
        return False
    x, held, goal = found
    window = window_of(low, node, floats.shape[2:])
    _write(low, node, goal, "conv_u8", (x.view, *held), (low.sizes("window", *window.fields), _range(low, x, goal)))
    return True


@integer_rule("ConvTranspose")
def _conv_transpose(low: Lowering, node: onnx.NodeProto) -> bool:
    """Of one group: of several the scales of channels are shared."""
    _, bias, window = transposed_weights(low, node)
    found = _weighted(low, node, 1, bias) if window.groups == 1 else None
    if found is None:
        return False
    x, held, goal = found
    sizes = low.sizes("window", *window.fields), _range(low, x, goal)
    _write(low, node, goal, "conv_transpose_u8", (x.view, *held), sizes)
    return True


@integer_rule("Gemm", "MatMul")
def _linear(low: Lowering, node: onnx.NodeProto) -> bool:
    told = options(node, transB=0, alpha=1.0, beta=1.0)
    if node.input[1] not in low.net.known:
        return False
    floats, bias = linear_weights(low, node)
    found = _weighted(low, node, 0 if told["transB"] else 1, bias)
    if found is None or told["alpha"] != 1 or told["beta"] != 1:
        return False
    x, held, goal = found
    n_out, n_in = floats.shape
    sizes = (str(x.view.n_elements // n_in), str(n_in), str(n_out), _range(low, x, goal))
    _write(low, node, goal, "linear_u8", (x.view, *held), sizes)
    return True


def _weighted(
    low: Lowering, node: onnx.NodeProto, out_dim: int, bias: np.ndarray
) -> tuple[Quantized, tuple[Held, ...], Goal] | None:
    """The input of a layer, its weights, bias, multipliers and shifts, and where its results go."""
    x, goal = low.quantized[node.input[0]], goal_of(low, node)
    weights = weights_of(low, node.input[1], out_dim)
    if goal is None or weights is None or x.view.type != "uint8_t":
        return None
    whole = weights.bias(bias, x.scale)
    scaled = rescaling(low, weights.scales * x.scale / goal.grid.scale)
    if whole is None or scaled is None:
        return None
    return x, (low.made.hold(weights.values, "int8_t"), low.made.hold(whole, "int32_t"), *scaled), goal


def _range(low: Lowering, x: Quantized, goal: Goal) -> Held:
    """The zeros of what is read and written, and the least and the most that is written."""
    return low.sizes("range", x.zero, goal.grid.zero, goal.grid.low, goal.grid.high)


def _write(  # noqa: PLR0913 - a call, and what becomes of it
    low: Lowering,
    node: onnx.NodeProto,
    goal: Goal,
    kernel: str,
    before: tuple[Argument, ...],
    after: tuple[Argument, ...],
    over: tuple[View, ...] = (),
) -> None:
    """A step whose result stands where the integers of its goal do."""
    out = low.made.new(low.net.shapes[node.output[0]], goal.grid.type)
    low.made.add(out, Call(kernel, (*before, out, *after)), over=over)
    low.views[goal.name] = View(out.value, low.net.shapes[goal.name], out.type)
    low.done.update(goal.passed)


# --- two values


@integer_rule("Add", "Sub", "Mul")
def _binary(low: Lowering, node: onnx.NodeProto) -> bool:
    goal, parts = goal_of(low, node), _all_bytes(low, node)
    if goal is None or len(parts) != 2:
        return False
    left, right = parts
    factors = _factors(node.op_type, left.scale, right.scale, goal.grid.scale)
    if factors is None:
        return False
    shape = low.net.shapes[node.output[0]]
    walk = low.sizes("walk", *walk_of(node, shape, *(aligned(one.view.shape, shape) for one in parts)))
    told = low.sizes("pair", left.zero, right.zero, *factors)
    over = tuple(one.view for one in parts if one.view.n_elements == math.prod(shape))
    kernel = "mul_u8" if node.op_type == "Mul" else "add_u8"
    _write(low, node, goal, kernel, (left.view, right.view), (walk, told, _range(low, left, goal)), over)
    return True


def _all_bytes(low: Lowering, node: onnx.NodeProto) -> list[Quantized]:
    """All inputs of an operator as unsigned integers; none where one is something else."""
    found = [low.quantized[name] for name in node.input if name in low.quantized]
    is_all = len(found) == len(node.input) and all(one.view.type == "uint8_t" for one in found)
    return found if is_all else []


def _factors(operator: str, left: float, right: float, out: float) -> tuple[int, int, int] | None:
    """Two multipliers and the shift that they share; of a product the second is not read."""
    if operator == "Mul":
        found = multiplied(left * right / out)
        return None if found is None else (found[0], 0, found[1])
    exponent = max(math.frexp(left / out)[1], math.frexp(right / out)[1])
    shift = _SUM_BITS - exponent
    if not 1 <= shift <= 62:
        return None
    first, second = round(left / out * 2**shift), round(right / out * 2**shift)
    return first, -second if operator == "Sub" else second, shift


# --- pools


@integer_rule("GlobalAveragePool", "ReduceMean")
def _mean(low: Lowering, node: onnx.NodeProto) -> bool:
    x, goal = low.quantized[node.input[0]], goal_of(low, node)
    shape = x.view.shape
    is_global = node.op_type == "GlobalAveragePool"
    axes = list(range(2, len(shape))) if is_global else axes_of(low, node)
    sizes = adjacent(shape, axes) if axes else None
    if goal is None or sizes is None or x.view.type != "uint8_t":
        return False
    scaled = rescaling(low, np.array([x.scale / (goal.grid.scale * sizes[1])]))
    if scaled is None:
        return False
    _write(low, node, goal, "mean_u8", (x.view, *scaled), (*map(str, sizes), _range(low, x, goal)))
    return True


@integer_rule("AveragePool")
def _average_pool(low: Lowering, node: onnx.NodeProto) -> bool:
    """Where not every window has as many numbers, by a multiplier for each count."""
    x, goal = low.quantized[node.input[0]], goal_of(low, node)
    told = options(node, count_include_pad=0)
    window = pool_window(low, node)
    if goal is None or x.view.type != "uint8_t":
        return False
    most = math.prod(window.kernel)
    counts = np.array([most]) if window.reads_no_padding else np.arange(1, most + 1)
    scaled = rescaling(low, x.scale / (goal.grid.scale * counts))
    if scaled is None:
        return False
    sizes = low.sizes("window", *window.fields), _range(low, x, goal)
    if window.reads_no_padding:
        _write(low, node, goal, "average_pool_u8", (x.view, *scaled), sizes)
    else:
        _write(low, node, goal, "average_pool_padded_u8", (x.view, *scaled), (*sizes, str(told["count_include_pad"])))
    return True


@integer_rule("MaxPool")
def _max_pool(low: Lowering, node: onnx.NodeProto) -> bool:
    """The largest integer stands for the largest float."""
    check_pool(low, node)
    x = low.quantized[node.input[0]]
    if x.view.type != "uint8_t":
        return False
    window = pool_window(low, node)
    out = low.made.new(low.net.shapes[node.output[0]], "uint8_t")
    low.made.add(out, Call("max_pool_u8", (x.view, out, low.sizes("window", *window.fields))))
    low.quantized[node.output[0]] = Quantized(out, x.scale, x.zero)
    return True


# --- what only moves


@integer_rule(*_MOVES)
def _move(low: Lowering, node: onnx.NodeProto) -> bool:
    """By the rule for floats, on what stands for them."""
    name = node.input[0]
    x, before = low.quantized[name], low.views.get(name)
    low.views[name] = x.view
    low.kinds.update(dict.fromkeys(node.output, x.view.type))
    RULES[node.op_type](low, node)
    for output in filter(None, node.output):
        low.quantized[output] = Quantized(low.views.pop(output), x.scale, x.zero)
    del low.views[name]
    if before is not None:
        low.views[name] = before
    return True


@integer_rule("Resize")
def _resize(low: Lowering, node: onnx.NodeProto) -> bool:
    """To the nearest, which makes no new numbers."""
    return is_nearest(node) and _move(low, node)


@integer_rule("Concat")
def _concat(low: Lowering, node: onnx.NodeProto) -> bool:
    parts, goal = _all_bytes(low, node), goal_of(low, node)
    if not parts or goal is None:
        return False
    shape = low.net.shapes[node.output[0]]
    out = low.made.new(shape, "uint8_t")
    axis, start, calls = options(node, axis=0)["axis"] % len(shape), 0, []
    for one in parts:
        calls.append(_put(low, node, one, out, goal.grid, axis, start))
        start += one.view.shape[axis]
    low.made.add(out, *calls)
    low.views[goal.name] = View(out.value, low.net.shapes[goal.name], "uint8_t")
    low.done.update(goal.passed)
    return True


def _put(  # noqa: PLR0913 - what goes where
    low: Lowering, node: onnx.NodeProto, part: Quantized, out: View, grid: Grid, axis: int, start: int
) -> Call:
    """The call that copies one part into its place, through a table where it is of another grid."""
    table = grid.integers(_grid(part).floats)
    copied = put(low, node, part.view, out, axis, start)
    if np.array_equal(table, np.arange(256)):
        return copied
    x, into, walk = copied.arguments
    return Call("copy_table_u8", (x, low.made.hold(table, "uint8_t"), into, walk))
