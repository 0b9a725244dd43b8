"""The processes that share one job out, as those see them who read samples: which part is theirs, and how they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from torch import Tensor

from edgeprune.data.batching import Share
from edgeprune.errors import InputError
from edgeprune.lines import shown

_T = TypeVar("_T")


class Ranks(Protocol):
    """Processes that all go through the same steps: where one of them gathers or sums, all do."""

    @property
    def share(self) -> Share:
        """Which of them this is."""

    def gathered(self, rows: list[Any]) -> list[Any]:
        """What all of them have, the first one's before the second's, on each of them."""

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of their tensors of one shape, the same on each of them."""


class Alone:
    """One process, which has all there is."""

    share = Share()

    def gathered(self, rows: list[Any]) -> list[Any]:
        """Its own."""
        return rows

    def summed(self, tensor: Tensor) -> Tensor:
        """Its own."""
        return tensor


ALONE = Alone()


def in_order(ranks: Ranks, own: Iterable[_T]) -> Iterator[_T]:
    """What the processes make of the parts that fall to them in turn, that of all parts, in the order of the parts.

    Of five parts the first of two processes has the first, the third and the fifth. What is added up from them is the
    same to the last bit however many processes there are.
    """
    share = ranks.share
    if share.n_ranks == 1:
        yield from own
        return
    numbered = [(share.rank + number * share.n_ranks, part) for number, part in enumerate(own)]
    yield from (part for _, part in sorted(ranks.gathered(numbered), key=itemgetter(0)))


def check_same(ranks: Ranks, facts: Callable[[], Mapping[str, Any]], what: str) -> None:
    """Raise InputError, in all processes, where they are not the same in these facts.

    Args:
        facts: what makes them, as plain values by name; asked of several processes alone.
        what: that is expected of each, e.g. "the data of".
    """
    if ranks.share.n_ranks == 1:
        return
    first, *others = ranks.gathered([dict(facts())])
    for number, other in enumerate(others, 1):
        for name in (*first, *(name for name in other if name not in first)):
            own, its = first.get(name), other.get(name)
            if own != its:
                raise InputError(
                    f"process {number}: expected {what} process 0; {name}: expected {shown(own)}, got {shown(its)}"
                )
