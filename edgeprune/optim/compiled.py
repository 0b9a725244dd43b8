"""The step of xRDA on a CPU: the arithmetic of `elementwise`, compiled, in the fewest passes over memory.

A step reads and writes far more than it computes. torch's operations take each tensor from memory ten times; here the
histories and their maximum are one pass and everything else is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from edgeprune.optim.base import Job
from edgeprune.optim.elementwise import FLOOR, Pull

_TILE = 1024  # elements, which fit the first cache
_SHARE = 2**17  # elements: fewer are not worth a thread of their own

# Division by zero gives inf, and other threads run meanwhile. Sums may be taken in any order: several at once.
_compiled = njit(nogil=True, error_model="numpy", fastmath={"reassoc"})

_Array = np.ndarray[Any, Any]
_Call = tuple[Any, ...]  # a compiled function and its arguments
_Run = Callable[[list[_Call]], list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A weight in which `size` elements in a row of memory share a threshold.

    `history` and `threshold` have one number a row, in the same order.
    """

    job: Job
    size: int
    history: Tensor
    threshold: Tensor


# -- compiled: arrays are flat, and every number has their type, since with a double one all would be computed in double


@_compiled
def _age(p: Any, r: Any, numbers: Any) -> Any:
    """r = keep r + gain |p|, forgotten below the floor; its maximum."""
    keep, gain, floor, zero = numbers[0], numbers[1], numbers[2], numbers[3]
    peaks = np.zeros(_TILE, r.dtype)  # one for each place of a tile, so that no element waits for another
    for start in range(0, r.size, _TILE):
        weights, history = p[start : start + _TILE], r[start : start + _TILE]
        for i in range(history.size):
            aged = keep * history[i] + gain * abs(weights[i])
            aged = aged if aged > floor else zero
            history[i] = aged
            peaks[i] = aged if aged > peaks[i] else peaks[i]
    return peaks.max()


@_compiled
def _age_rows(p: Any, r: Any, numbers: Any) -> Any:
    """As `_age`, with the mean of |p| over each row; `gain` is divided by their size."""
    keep, gain, floor, zero = numbers[0], numbers[1], numbers[2], numbers[3]
    n, peak = p.size // r.size, zero
    for row in range(r.size):
        weights, total = p[row * n : (row + 1) * n], zero
        for i in range(n):
            total += abs(weights[i])
        aged = keep * r[row] + gain * total
        aged = aged if aged > floor else zero
        r[row] = aged
        peak = aged if aged > peak else peak
    return peak


@_compiled
def _moved_weight(p: Any, g: Any, v: Any, k: Any, most: Any, numbers: Any) -> Any:
    """One weight, its velocity and its residual after the step, within its limit."""
    keep, rest, decay, s, a = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    speed = keep * v + rest * (g + decay * p)
    z = p - s * speed + a * k
    taken = most if z > most else (-most if z < -most else z)
    return z - taken, speed, taken


@_compiled
def _tightened(limit: Any, r: Any, numbers: Any) -> Any:
    """limit = a limit + s lam w."""
    return numbers[4] * limit + numbers[5] / (numbers[7] + numbers[6] * r)


@_compiled
def _step(moved: Any, limit: Any, r: Any, numbers: Any) -> None:
    """Each weight moves within its own limit, which becomes tighter."""
    p, g, v, k = moved
    for i in range(p.size):
        limit[i] = _tightened(limit[i], r[i], numbers)
        p[i], v[i], k[i] = _moved_weight(p[i], g[i], v[i], k[i], limit[i], numbers)


@_compiled
def _step_rows(moved: Any, limit: Any, r: Any, numbers: Any) -> None:
    """As `_step`, with a limit for each row."""
    for row in range(limit.size):
        limit[row] = _tightened(limit[row], r[row], numbers)
    _move_rows(moved, limit, numbers)


@_compiled
def _move_rows(moved: Any, limit: Any, numbers: Any) -> None:
    """Each weight moves within the limit of its row."""
    p, g, v, k = moved
    n = p.size // limit.size
    n_rows = max(1, _TILE // n)
    full = np.empty(n_rows * n, p.dtype)
    for first in range(0, limit.size, n_rows):
        own = limit[first : first + n_rows]
        for row in range(own.size):
            filled = full[row * n : (row + 1) * n]
            for i in range(n):
                filled[i] = own[row]
        tile = slice(first * n, (first + own.size) * n)
        _move((p[tile], g[tile], v[tile], k[tile]), full, numbers)


@_compiled
def _move(moved: Any, limit: Any, numbers: Any) -> None:
    """Each weight moves within its own limit."""
    p, g, v, k = moved
    for i in range(p.size):
        p[i], v[i], k[i] = _moved_weight(p[i], g[i], v[i], k[i], limit[i], numbers)


# -- the steps of many tensors


def rows(job: Job, spanned: tuple[int, ...]) -> Rows | None:
    """The weight in rows, where the groups that span these dims are that; None where they lie otherwise."""
    if not spanned:
        return Rows(job, 1, job.tensor("history"), job.tensor("threshold"))
    weight = job.work
    order = [dim for dim in _memory_order(weight) if weight.shape[dim] > 1]
    if order != sorted(dim for dim in order if dim not in spanned) + [dim for dim in order if dim in spanned]:
        return None
    shape = [1 if dim in spanned else size for dim, size in enumerate(weight.shape)]
    for key in ("history", "threshold"):
        if key not in job.state:
            job.state[key] = weight.new_zeros(shape)
    return Rows(job, weight.numel() // math.prod(shape), job.state["history"], job.state["threshold"])


def row_steps(weights: list[Rows], pull: Pull) -> None:
    """The steps of weights whose thresholds are made here: of single elements, and of groups that lie in a row."""
    with _threads() as (run, n_threads):
        for together in [weights] if n_threads > 1 else [[own] for own in weights]:
            parts = [(own, span) for own in together for span in _spans(own.history.numel(), own.size, n_threads)]
            peaks: dict[int, float] = {}
            for (own, _), peak in zip(parts, run([_aged(*part, pull) for part in parts]), strict=True):
                peaks[id(own)] = max(float(peak), peaks.get(id(own), 0.0))
            run([_stepped(*part, peaks[id(part[0])], pull) for part in parts])


def limited_steps(jobs: list[Job], limits: list[Tensor], pull: Pull) -> None:
    """The steps of tensors with given thresholds, each of which broadcasts to its weights."""
    with _threads() as (run, n_threads):
        calls: list[_Call] = []
        for job, limit in zip(jobs, limits, strict=True):
            own = _in_rows(limit, job.work)
            size = job.work.numel() // len(own)
            numbers, move = _numbers(pull, own.dtype), _move if size == 1 else _move_rows
            spans = _spans(len(own), size, n_threads)
            calls += [(move, _moved(job, span, size), own[span], numbers) for span in spans]
        run(calls)


def _aged(own: Rows, span: slice, pull: Pull) -> _Call:
    p, r = _flat(own.job.work)[_elements(span, own.size)], _flat(own.history)[span]
    gain = pull.history_gain
    numbers = np.array([1 - gain, gain / own.size, FLOOR[own.history.dtype], 0.0], r.dtype)
    return _age if own.size == 1 else _age_rows, p, r, numbers


def _stepped(own: Rows, span: slice, peak: float, pull: Pull) -> _Call:
    slope = (pull.max_factor - 1) / peak if peak > 0 else 0.0
    limit, r = _flat(own.threshold)[span], _flat(own.history)[span]
    numbers = _numbers(pull, r.dtype, math.sqrt(own.size), slope)
    return _step if own.size == 1 else _step_rows, _moved(own.job, span, own.size), limit, r, numbers


def _in_rows(limit: Tensor, weight: Tensor) -> _Array:
    """The thresholds in the order that the weights lie in memory, one for each stretch that shares one."""
    full = limit.expand_as(weight).permute(_memory_order(weight))
    outer = full.dim()
    while outer and (full.stride(outer - 1) == 0 or full.shape[outer - 1] == 1):
        outer -= 1
    return full[(...,) + (0,) * (full.dim() - outer)].to(weight.dtype).contiguous().view(-1).numpy()


def _memory_order(weight: Tensor) -> list[int]:
    """The dims, the one that changes slowest in memory first."""
    return sorted(range(weight.dim()), key=weight.stride, reverse=True)


def _moved(job: Job, span: slice, size: int) -> tuple[_Array, ...]:
    tensors = job.work, job.grad, job.tensor("velocity"), job.tensor("residual")
    return tuple(_flat(tensor)[_elements(span, size)] for tensor in tensors)


def _elements(rows: slice, size: int) -> slice:
    return slice(rows.start * size, rows.stop * size)


def _flat(tensor: Tensor) -> _Array:
    """The elements of a dense tensor in the order that they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()


def _numbers(pull: Pull, dtype: np.dtype[Any], c: float = 1.0, slope: float = 0.0) -> _Array:
    """What the compiled functions of a step take."""
    descent = pull.descent
    momentum = descent.momentum, 1 - descent.dampening
    return np.array([*momentum, descent.weight_decay, descent.lr, pull.a, c * pull.gain, slope, 1.0], dtype)


# -- threads


def _spans(n_rows: int, size: int, n_threads: int) -> list[slice]:
    """The rows, of `size` elements each, in as many slices as are worth a thread."""
    n_parts = max(1, min(n_threads, n_rows, n_rows * size // _SHARE))
    edges = [n_rows * i // n_parts for i in range(n_parts + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


@contextmanager
def _threads() -> Iterator[tuple[_Run, int]]:
    """A map over as many threads as torch uses; the compiled functions let them run side by side."""
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield lambda calls: [_called(call) for call in calls], 1
        return
    with ThreadPoolExecutor(n_threads) as pool:
        yield lambda calls: list(pool.map(_called, calls)), n_threads


def _called(call: _Call) -> Any:
    function, *arguments = call
    return function(*arguments)
