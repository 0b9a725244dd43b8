"""How kernels go over arrays: up to five nested loops, each with a step for every array that they go over."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from edgeprune.export.c.rules import refusal

MOST_DIMS = 5


def strides_of(shape: Sequence[int]) -> list[int]:
    """Of an array that lies row by row, e.g. [12, 4, 1] for (2, 3, 4)."""
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def aligned(shape: Sequence[int], wide: Sequence[int]) -> list[int]:
    """The strides of an array that is repeated to a wider shape, as numpy does it."""
    missing = len(wide) - len(shape)
    own = strides_of(shape)
    return [0] * missing + [0 if size == 1 else stride for size, stride in zip(shape, own, strict=True)]


def merged(shape: Sequence[int], *strides: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The loops with those joined that all arrays go through as through one."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(shape):
        if size == 1:
            continue
        own = [one[dim] for one in strides]
        if sizes and all(step[-1] == stride * size for step, stride in zip(steps, own, strict=True)):
            sizes[-1] *= size
            for step, stride in zip(steps, own, strict=True):
                step[-1] = stride
        else:
            sizes.append(size)
            for step, stride in zip(steps, own, strict=True):
                step.append(stride)
    return sizes, steps


def walk_of(node: onnx.NodeProto, shape: Sequence[int], *strides: Sequence[int]) -> list[int]:
    """The fields of a `walk`: five sizes, then five strides of both arrays.

    Raises:
        InputError: more loops than that, which is no fault but of arrays that nobody has seen.
    """
    sizes, steps = merged(shape, *strides)
    if len(sizes) > MOST_DIMS:
        raise refusal(node, f"over {len(sizes)} dims that do not join")
    missing = MOST_DIMS - len(sizes)
    return [*[1] * missing, *sizes, *(number for step in steps for number in (*[0] * missing, *step))]
