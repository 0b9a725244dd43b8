"""The most memory that values take at once while operations run, in the order of them that needs the least.

A value takes its memory from the operation that writes it to the last that reads it. Which order is best is found by a
search over the sets of operations that can have run: of all such sets the one is gone on from whose peak is lowest, so
that the first complete one is the best. Where that takes too many sets, the better one of the given order and of a
greedy one stands, and `Peak.is_best` says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

MOST_SETS = 20_000  # of operations that have run, looked at in a search


@dataclass(frozen=True, slots=True)
class Operation:
    """What reads and writes values, by their numbers.

    It may write into the memory of one of `reuses`, which it reads, where it is the last to read that and writes but
    one value, no larger.
    """

    reads: frozenset[int]
    writes: tuple[int, ...]
    reuses: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that an order takes.

    `live` are the values that are there at that moment, `operation` the one that runs then (None: before the first),
    `order` all of them. `is_best` says whether no order takes less.
    """

    n_bytes: int
    operation: int | None
    live: tuple[int, ...]
    order: tuple[int, ...]
    is_best: bool


@dataclass(frozen=True, slots=True)
class _State:
    """The operations that have run and the values that are alive, as bits, with the peak so far.

    `last` ran last, after what led to the state `before` it.
    """

    done: int
    live: int
    n_live: int  # bytes
    peak: int
    last: int = -1
    before: _State | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """What has run, first to last."""
        found: list[int] = []
        state = self
        while state.before is not None:
            found.append(state.last)
            state = state.before
        return tuple(reversed(found))


class Lifetimes:
    """Operations over values of known sizes.

    Args:
        sizes: bytes of each value.
        given: values that are there before the first operation.
        kept: values that stay to the end.
        operations: in an order in which they can run.
    """

    def __init__(
        self, sizes: Sequence[int], given: Iterable[int], kept: Iterable[int], operations: Sequence[Operation]
    ) -> None:
        self.sizes, self.operations = tuple(sizes), tuple(operations)
        self._given, self._kept = frozenset(given), frozenset(kept)
        self._readers = [0] * len(self.sizes)
        writer: dict[int, int] = {}
        for number, operation in enumerate(self.operations):
            for value in operation.reads:
                self._readers[value] |= 1 << number
            writer.update(dict.fromkeys(operation.writes, number))
        self._before = [
            sum({1 << writer[value] for value in operation.reads if value in writer}) for operation in self.operations
        ]

    def best(self, most_sets: int = MOST_SETS) -> Peak:
        """The peak of the order that takes the least memory, as far as `most_sets` let it be found."""
        greedy, given = self._greedy(), self._along(range(len(self.operations)))
        known = min(given, greedy, key=lambda state: state.peak)
        least = self._least()
        if known.peak <= least:
            return self._told(known.order, is_best=True)
        found, is_best = self._searched(known, least, most_sets)
        return self._told(found.order, is_best)

    def peak_of(self, order: Sequence[int]) -> int:
        """The bytes that one order takes at most."""
        return self._along(order).peak

    def moments(self, order: Sequence[int]) -> list[frozenset[int]]:
        """The values that take memory before the first operation, and while each one of an order runs.

        What is written over something that is no longer needed takes none of its own.
        """
        state, found = self._start(), [self._given]
        for number in order:
            writes = self.operations[number].writes
            after = self._after(state, number)
            is_over = self._saved(self.operations[number], self._ended(number, after.done), self._bytes(writes))
            found.append(frozenset(_bits(state.live)) | (frozenset() if is_over else frozenset(writes)))
            state = after
        return found

    # -- one step --------------------------------------------------------------------------------------------------

    def _start(self) -> _State:
        live = self._staying(self._given)
        return _State(0, _mask(live), self._bytes(live), self._bytes(self._given))

    def _staying(self, values: Iterable[int]) -> list[int]:
        """Those that are read or kept; others are gone at once."""
        return [value for value in values if self._readers[value] or value in self._kept]

    def _bytes(self, values: Iterable[int]) -> int:
        return sum(self.sizes[value] for value in values)

    def _after(self, state: _State, number: int) -> _State:
        """What an operation makes of a state in which it can run."""
        operation, done = self.operations[number], state.done | 1 << number
        made = self._bytes(operation.writes)
        ended = self._ended(number, done)
        peak = state.n_live + made - self._saved(operation, ended, made)
        stay = self._staying(operation.writes)
        live = (state.live | _mask(stay)) & ~_mask(ended)
        n_live = state.n_live + self._bytes(stay) - self._bytes(ended)
        return _State(done, live, n_live, max(state.peak, peak), number, state)

    def _ended(self, number: int, done: int) -> list[int]:
        """What an operation reads that nothing needs once these have run."""
        reads = self.operations[number].reads
        return [value for value in reads if value not in self._kept and not self._readers[value] & ~done]

    def _saved(self, operation: Operation, ended: Iterable[int], made: int) -> int:
        """The bytes that need no memory of their own."""
        fits = any(value in operation.reuses and self.sizes[value] >= made for value in ended)
        return made if len(operation.writes) == 1 and fits else 0

    def _ready(self, done: int) -> Iterator[int]:
        for number, before in enumerate(self._before):
            if not done >> number & 1 and not before & ~done:
                yield number

    # -- orders ----------------------------------------------------------------------------------------------------

    def _along(self, order: Iterable[int]) -> _State:
        state = self._start()
        for number in order:
            state = self._after(state, number)
        return state

    def _greedy(self) -> _State:
        """Always the operation at which the memory is lowest, then the one that leaves the least."""
        state = self._start()
        for _ in self.operations:
            nexts = (self._after(state, number) for number in self._ready(state.done))
            state = min(nexts, key=lambda after: (after.peak, after.n_live, after.last))
        return state

    def _least(self) -> int:
        """What no order stays below: what goes in, what comes out, and what each operation reads and writes."""
        return max(
            self._bytes(self._given),
            self._bytes(self._kept),
            *(self._own(operation) for operation in self.operations),
            0,
        )

    def _own(self, operation: Operation) -> int:
        made = self._bytes(operation.writes)
        return self._bytes(operation.reads) + made - self._saved(operation, operation.reads - self._kept, made)

    def _searched(self, known: _State, least: int, most_sets: int) -> tuple[_State, bool]:
        """A state in which all have run and its peak is the lowest, and whether that is sure."""
        everything = (1 << len(self.operations)) - 1
        waiting = [(max(self._start().peak, least), 0, self._start())]
        reached, counter = {0: 0}, 0  # the lowest peak of each set so far
        while waiting:
            peak, _, state = heapq.heappop(waiting)
            if state.done == everything:
                return state, True
            for after in self._nexts(state, max(peak, least)):
                if after.peak >= min(known.peak, reached.get(after.done, known.peak)):
                    continue
                reached[after.done] = after.peak
                counter += 1
                if counter > most_sets:
                    return known, False
                heapq.heappush(waiting, (max(after.peak, least), -counter, after))
        return known, True

    def _nexts(self, state: _State, peak: int) -> Iterator[_State]:
        """What can follow; one alone where it takes no more than the peak and leaves no more memory in use.

        To run such a one at once is never worse: what it frees later readers find free, and at no step is more alive.
        """
        nexts = [self._after(state, number) for number in self._ready(state.done)]
        free = next((after for after in nexts if after.peak <= peak and after.n_live <= state.n_live), None)
        yield from nexts if free is None else (free,)

    def _told(self, order: Sequence[int], is_best: bool) -> Peak:
        """An order with the moment of its peak."""
        state, peak = self._start(), self._start().peak
        at, live = None, tuple(sorted(self._given))
        for number in order:
            after = self._after(state, number)
            if after.peak > peak:
                there = state.live | _mask(self.operations[number].writes)
                peak, at, live = after.peak, number, tuple(_bits(there))
            state = after
        return Peak(peak, at, live, tuple(order), is_best)


def _mask(values: Iterable[int]) -> int:
    """Numbers as bits, e.g. 5 of 0 and 2."""
    return sum(1 << value for value in values)


def _bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set, e.g. 0 and 2 of 5."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1
