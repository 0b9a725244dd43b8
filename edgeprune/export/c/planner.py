"""Where values lie in one arena: the order of the least memory, then offsets at which none is in another's way."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeprune.cost.liveness import Lifetimes, Operation
from edgeprune.export.c.graph import Lowered, Step

ALIGNMENT = 4  # bytes, of a float
_TRIES = 100  # orders of placing, where the first ones leave gaps
_MOST_SHUFFLED = 100  # values; of more every try takes too long


@dataclass(frozen=True, slots=True)
class Arena:
    """Where every value begins, in bytes; `peak_bytes` is what is alive at once, which no arena stays below.

    `steps` are in the order that the offsets are for.
    """

    steps: tuple[Step, ...]
    offsets: Mapping[int, int]
    n_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Memory that one value has, or several one after the other, from one step to another."""

    values: tuple[int, ...]
    n_bytes: int
    first: int
    last: int

    def meets(self, other: _Buffer) -> bool:
        """Whether both are in use at some step."""
        return self.first <= other.last and other.first <= self.last


def arena_of(made: Lowered) -> Arena:
    """The arena of a network, whose inputs are there from the start and whose outputs stay to the end.

    Offsets are first-fit, the largest first; other orders are tried where that is more than what is alive at once.
    """
    sizes = [rounded(size) for size in made.sizes]
    given, kept = ([view.value for view in views] for views in (made.inputs, made.outputs))
    operations = [Operation(step.reads, (step.writes,), step.over) for step in made.steps]
    peak = Lifetimes(sizes, given, kept, operations).best()
    steps = tuple(made.steps[number] for number in peak.order)
    buffers = _buffers(steps, sizes, given, kept)
    offsets, n_bytes = _placed(buffers, peak.n_bytes)
    return Arena(steps, offsets, max(n_bytes, ALIGNMENT), peak.n_bytes)


def beside(made: Lowered, pinned: Mapping[int, int], taken: Sequence[tuple[int, int]]) -> Arena:
    """The arena of steps whose results have their places, and whose inputs lie elsewhere.

    Args:
        made: the steps.
        pinned: offsets by value.
        taken: the start and the end of memory that is in use all the time.
    """
    sizes = [rounded(size) for size in made.sizes]
    held = [_Buffer((), end - start, -1, len(made.steps)) for start, end in taken]
    places = dict(zip(map(id, held), (start for start, _ in taken), strict=True))
    offsets: dict[int, int] = {}
    for buffer in _buffers(made.steps, sizes, (), list(pinned)):
        fixed = [pinned[value] for value in buffer.values if value in pinned]
        if not fixed:
            places[id(buffer)] = _first_fit(buffer, held, places)
            held.append(buffer)
        offsets |= dict.fromkeys(buffer.values, fixed[0] if fixed else places[id(buffer)])
    n_bytes = max(places[id(one)] + one.n_bytes for one in held)
    return Arena(tuple(made.steps), offsets, n_bytes, n_bytes)


def rounded(size: int) -> int:
    """Up to whole floats."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _buffers(steps: Sequence[Step], sizes: Sequence[int], given: Iterable[int], kept: Sequence[int]) -> list[_Buffer]:
    """What is alive from when to when; a step that may write over a value that it is the last to read does so."""
    last = _last(steps, kept)
    held = {value: _Buffer((value,), sizes[value], -1, last.get(value, -1)) for value in given}
    for number, step in enumerate(steps):
        own = _Buffer((step.writes,), sizes[step.writes], number, last.get(step.writes, number))
        ending = (held[value] for value in sorted(step.over & held.keys()) if last[value] == number)
        before = next((one for one in ending if one.n_bytes == own.n_bytes), None)
        if before is not None:
            own = replace(before, values=(*before.values, step.writes), last=own.last)
        held[step.writes] = own
    final = {one.values[0]: one for one in held.values()}  # the last one of those that go on from each other
    return list(final.values())


def _last(steps: Sequence[Step], kept: Sequence[int]) -> dict[int, int]:
    """The step that is the last to read a value; of those that stay to the end, one more than there are."""
    found = {value: number for number, step in enumerate(steps) for value in step.reads}
    return found | dict.fromkeys(kept, len(steps))


def _placed(buffers: Sequence[_Buffer], least: int) -> tuple[dict[int, int], int]:
    """Offsets by value, and the bytes that they take; `least` is what is enough."""
    best: tuple[dict[int, int], int] | None = None
    for order in _orders(buffers):
        found = _first_fits(order)
        if best is None or found[1] < best[1]:
            best = found
        if best[1] <= least:
            break
    assert best is not None
    return best


def _orders(buffers: Sequence[_Buffer]) -> Iterable[list[_Buffer]]:
    """Orders of placing: by size, by size and time, by time, then some by chance."""
    yield sorted(buffers, key=lambda one: (-one.n_bytes, one.first))
    yield sorted(buffers, key=lambda one: -one.n_bytes * (one.last - one.first + 1))
    yield sorted(buffers, key=lambda one: (one.first, -one.n_bytes))
    yield sorted(buffers, key=lambda one: (-one.last, -one.n_bytes))
    if len(buffers) > _MOST_SHUFFLED:
        return
    chance = random.Random(0)
    for _ in range(_TRIES):
        weights = {id(one): one.n_bytes * chance.uniform(0.2, 1) for one in buffers}
        yield sorted(buffers, key=lambda one: -weights[id(one)])  # noqa: B023 - sorted at once


def _first_fits(order: Sequence[_Buffer]) -> tuple[dict[int, int], int]:
    places: dict[int, int] = {}
    done: list[_Buffer] = []
    offsets: dict[int, int] = {}
    for buffer in order:
        places[id(buffer)] = start = _first_fit(buffer, done, places)
        done.append(buffer)
        offsets |= dict.fromkeys(buffer.values, start)
    return offsets, max((places[id(one)] + one.n_bytes for one in done), default=0)


def _first_fit(buffer: _Buffer, done: Iterable[_Buffer], places: Mapping[int, int]) -> int:
    """The first offset at which it is in no other's way."""
    start = 0
    for other in sorted((one for one in done if one.meets(buffer)), key=lambda one: places[id(one)]):
        at = places[id(other)]
        if start + buffer.n_bytes <= at:
            break
        start = max(start, at + other.n_bytes)
    return start
