"""The journal of a search that several processes do together: the main one keeps it, and all go by what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from edgeprune.data.ranks import check_same
from edgeprune.graph.capture import Program
from edgeprune.journal.journal import Journal
from edgeprune.journal.place import Place
from edgeprune.progress import Progress
from edgeprune.search.candidate import Gauge, Measured
from edgeprune.training import StateFile, Team


class Results(Protocol):
    """What a search takes results from as long as there are any, and adds them to from then on."""

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured before the search began."""

    @property
    def replaces(self) -> bool:
        """Whether the run goes on from what is there."""

    @property
    def earlier(self) -> float:
        """Seconds that the search took in earlier processes."""

    def clock(self) -> float:
        """Seconds that the search has taken, in whatever processes."""

    def held(self, told: Progress) -> contextlib.AbstractContextManager[None]:
        """Keep what the search comes to inside."""

    def found(self) -> None:
        """The search is over; what it came to stays whatever fails from here on."""

    def comes_to(self, kind: str) -> bool:
        """Whether the next result is there, and of this kind."""

    def kept(self, kind: str, asked: str, work: Callable[[], Any], module: nn.Module | None = None) -> Any:
        """What `work` gives, from what is there, else it is done and kept."""

    def running(self) -> StateFile | None:
        """Where the training that is underway keeps its state."""


def results_of(team: Team, place: Place, asked: Mapping[str, Any], resume: bool) -> Results:
    """The journal of one process, or that of several; see `Journal`."""
    if team.share.n_ranks == 1:
        return Journal(place, asked, resume)
    return SharedJournal(team, place, asked, resume)


class SharedJournal:
    """A journal in the main process, whose word counts: what is there is handed to all, what is not all come to.

    Before each result they make sure that they are at the same one, of the same network.

    Args:
        team: the processes, which all make one of these with the same arguments.
        place, asked, resume: as of `Journal`.
    """

    def __init__(self, team: Team, place: Place, asked: Mapping[str, Any], resume: bool) -> None:
        self._team, self._place = team, place
        self._own = Journal(place, asked, resume) if team.is_main else None
        goes_on, facts = team.by_main(lambda: (self._main.replaces, self._main.facts))
        self._goes_on: bool = goes_on
        self.facts: dict[str, Any] = self._own.facts if self._own else facts
        self._underway: str | None = None

    @property
    def _main(self) -> Journal:
        assert self._own is not None  # only the main process asks
        return self._own

    @property
    def replaces(self) -> bool:
        """As of the main process's."""
        return self._goes_on

    @property
    def earlier(self) -> float:
        """As of the main process's; of another 0, which tells nobody of it."""
        return self._own.earlier if self._own else 0.0

    def clock(self) -> float:
        """By the main process's, so that none goes another way for being slower."""
        return self._team.by_main(lambda: self._main.clock())

    @contextlib.contextmanager
    def held(self, told: Progress) -> Iterator[None]:
        """Keep what the search comes to inside, in the main process."""
        with self._own.held(told) if self._own else contextlib.nullcontext():
            yield

    def found(self) -> None:
        """As of the main process's; the others keep nothing."""
        if self._own is not None:
            self._own.found()

    def comes_to(self, kind: str) -> bool:
        """Whether the next result is there, and of this kind."""
        self._check_alike(kind, "")
        return self._team.by_main(lambda: self._main.comes_to(kind))

    def kept(self, kind: str, asked: str, work: Callable[[], Any], module: nn.Module | None = None) -> Any:
        """What `work` gives: what the main process has of it, else what all come to; trained weights are its own.

        Raises:
            InputError: as `Journal.kept`, or the processes are not at the same result.
        """
        self._check_alike(kind, asked)
        if self._team.by_main(lambda: self._main.has_next):
            value = self._team.by_main(lambda: self._main.kept(kind, asked, work, module))
        else:
            value = self._worked(kind, asked, work, module)
        if module is not None:
            self._team.make_same(module)
        return value

    def _check_alike(self, kind: str, asked: str) -> None:
        """Raise InputError where another process is not at the same result, of the same network."""
        check_same(self._team, lambda: {"next": kind, "of": asked}, "the search to go on as that of")

    def _worked(self, kind: str, asked: str, work: Callable[[], Any], module: nn.Module | None) -> Any:
        if self._own is not None:
            return self._own.kept(kind, asked, work, module)
        self._underway = asked
        try:
            return work()
        finally:
            self._underway = None

    def running(self) -> StateFile | None:
        """Where the main process keeps the state of the training that is underway; the others write nothing there."""
        if self._own is not None:
            return self._own.running()
        if self._underway is None:
            return None
        return StateFile(self._place.path, {"asked": self._underway}, resume=True)


def measured_by_main(team: Team, make: Callable[[], Gauge]) -> Gauge:
    """A gauge that only the main process has, and measures with, while the others wait: no two come out alike."""
    if team.share.n_ranks == 1:
        return make()
    own = make() if team.is_main else None

    def measured(program: Program, surely: bool) -> Measured:
        def work() -> Measured:
            assert own is not None
            return own(program, surely)

        return team.by_main(work)

    return measured
