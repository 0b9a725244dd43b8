"""Operators that move numbers: those that only tell another shape take neither memory nor time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from edgeprune.export.c.graph import Call, View, kind_of
from edgeprune.export.c.layers import around
from edgeprune.export.c.places import by_places
from edgeprune.export.c.rules import Lowering, options, refusal, rule
from edgeprune.export.c.walks import merged, strides_of, walk_of


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
def _reshape(low: Lowering, node: onnx.NodeProto) -> None:
    low.show(node, low.view(node.input[0]))


@rule("Transpose")
def _transpose(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    order = options(node, perm=list(reversed(range(len(x.shape)))))["perm"]
    steps = strides_of(x.shape)
    moved(low, node, x, 0, [steps[dim] for dim in order])


@rule("Slice")
def _slice(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    given = [low.constant(node, place) for place in range(1, 5)]
    if given[0] is None or given[1] is None:
        raise refusal(node, "of an operator set before 10")
    starts, ends = given[0].ravel().tolist(), given[1].ravel().tolist()
    axes, steps = (None if one is None else one.ravel().tolist() for one in given[2:])
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    strides, start = strides_of(x.shape), 0
    for first, last, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, _, _ = slice(int(first), int(last), int(step)).indices(x.shape[axis])
        start += begin * strides[axis]
        strides[axis] *= int(step)
    moved(low, node, x, start, strides)


@rule("Split")
def _split(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    axis = options(node, axis=0)["axis"] % len(x.shape)
    steps, start = strides_of(x.shape), 0
    for place, name in enumerate(node.output):
        if name:
            moved(low, node, x, start, steps, place)
        start += low.net.shapes[name][axis] * steps[axis]


@rule("Expand")
def _expand(low: Lowering, node: onnx.NodeProto) -> None:
    x = low.view(node.input[0])
    wide = low.net.shapes[node.output[0]]
    missing = len(wide) - len(x.shape)
    own = zip(x.shape, strides_of(x.shape), strict=True)
    moved(low, node, x, 0, [*[0] * missing, *(0 if size == 1 else step for size, step in own)])


def moved(  # noqa: PLR0913 - from where on, and how it goes on
    low: Lowering,
    node: onnx.NodeProto,
    x: View,
    start: int,
    steps: Sequence[int],
    place: int = 0,
    shape: Sequence[int] | None = None,
) -> None:
    """Numbers of `x` from one on, with a step for each dim of the result: shown where they lie in a row.

    Args:
        low: the network.
        node: the operator.
        x: what is read.
        start: the first number.
        steps: from one number to the next along each dim.
        place: which output it is.
        shape: of as many numbers, where the steps are not those of the output's dims.
    """
    shape = low.net.shapes[node.output[place]] if shape is None else shape
    sizes, [walked] = merged(shape, steps)
    source = View(x.value, tuple(shape), x.type, x.start + start)
    if not sizes or walked == [1]:
        low.show(node, source, place)
        return
    out = low.result(node, place)
    walk = low.sizes("walk", *walk_of(node, shape, steps, strides_of(shape)))
    low.made.add(out, Call(f"copy_{kind_of(x)}", (source, out, walk)))


@rule("Gather")
def _gather(low: Lowering, node: onnx.NodeProto) -> None:
    if node.input[1] not in low.net.known:
        _look_up(low, node)
        return
    x, places = low.view(node.input[0]), low.net.known[node.input[1]]
    axis = options(node, axis=0)["axis"] % len(x.shape)
    outer, size, inner = around(x, axis)
    rows = places.ravel().astype(np.int64) % size
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        steps = strides_of((outer, size, inner))
        moved(low, node, x, int(rows[0]) * inner, steps, shape=(outer, len(rows), inner))
        return
    out, held = low.result(node), low.made.hold(rows, "int32_t")
    numbers = (str(outer), str(size), str(len(rows)), str(inner))
    low.made.add(out, Call(f"gather_{kind_of(x)}", (x, held, out, *numbers)))


def _look_up(low: Lowering, node: onnx.NodeProto) -> None:
    """Rows of a table, stored or computed, that computed ids mean."""
    name, ids = node.input[0], low.view(node.input[1])
    kind = low.type_of(name)
    if kind not in ("float", "int32_t"):
        raise refusal(node, f"of {low.net.types[name]}")
    table = low.held(low.net.known[name], kind) if name in low.net.known else low.view(name)
    shape = low.net.shapes[name]
    axis = options(node, axis=0)["axis"] % len(shape)
    sizes = math.prod(shape[:axis]), shape[axis], ids.n_elements, math.prod(shape[axis + 1 :])
    out = low.result(node)
    low.made.add(out, Call(f"lookup_{kind_of(out)}", (table, ids, out, *map(str, sizes))))


@rule("Concat")
def _concat(low: Lowering, node: onnx.NodeProto) -> None:
    parts = [low.view(name) for name in node.input]
    axis, start, calls = options(node, axis=0)["axis"] % len(parts[0].shape), 0, []
    out = low.result(node)
    for part in parts:
        calls.append(put(low, node, part, out, axis, start))
        start += part.shape[axis]
    low.made.add(out, *calls)


def put(low: Lowering, node: onnx.NodeProto, part: View, out: View, axis: int, start: int) -> Call:  # noqa: PLR0913
    """The call that copies one part into its place along a dim of `out`."""
    steps = strides_of(out.shape)
    into = View(out.value, out.shape, out.type, out.start + start * steps[axis])
    walk = low.sizes("walk", *walk_of(node, part.shape, strides_of(part.shape), steps))
    return Call(f"copy_{kind_of(out)}", (part, into, walk))


@rule("Pad")
def _pad(low: Lowering, node: onnx.NodeProto) -> None:
    if options(node, mode="constant")["mode"] != "constant":
        by_places(low, node)
        return
    x, pads, filled, axes = low.view(node.input[0]), low.constant(node, 1), low.constant(node, 2), low.constant(node, 3)
    assert pads is not None
    dims = list(range(len(x.shape))) if axes is None else [int(axis) % len(x.shape) for axis in axes]
    before = dict(zip(dims, pads[: len(dims)].tolist(), strict=True))
    after = dict(zip(dims, pads[len(dims) :].tolist(), strict=True))
    if min([*before.values(), *after.values()], default=0) < 0:
        raise refusal(node, "that cuts")
    out = low.result(node)
    steps = strides_of(out.shape)
    into = View(out.value, out.shape, out.type, sum(before.get(dim, 0) * step for dim, step in enumerate(steps)))
    walk = low.sizes("walk", *walk_of(node, x.shape, strides_of(x.shape), steps))
    number = 0.0 if filled is None else float(filled)
    text = low.number(number, out.type)
    fill = Call(f"fill_{kind_of(out)}", (out, str(out.n_elements), text))
    low.made.add(out, fill, Call(f"copy_{kind_of(out)}", (x, into, walk)))
