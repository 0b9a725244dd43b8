"""Progress on stderr: bars where it is a terminal, else a few plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from edgeprune.cli import interrupts
from edgeprune.lines import printable
from edgeprune.processes import is_main
from edgeprune.progress import Passing, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from edgeprune.progress import Progress

_SECONDS_BETWEEN_LINES = 10.0
_FIRST_GUESS = 0.05  # share of a stage after which its end can be guessed; the first part waits for preparations


@contextmanager
def follow() -> Iterator[Progress]:
    """A progress for stderr, closed when the work ends, however it ends; of several processes the main one speaks."""
    if not is_main():
        yield Heeding(Silent())
        return
    if not sys.stderr.isatty():
        yield Heeding(Lines(sys.stderr))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", style="cyan", markup=False),
        TimeRemainingColumn(compact=True),
    )
    console = Console(stderr=True, highlight=False)
    with RichProgress(*columns, console=console, transient=True) as bars:
        live = Bars(bars)
        yield Heeding(live)
        live.finish()


class Heeding(Passing):
    """Passes all on, and raises the Ctrl-C that something on the way swallowed; what is said last is passed on too."""

    def stage(self, title: str) -> None:
        """A new stage begins, unless the work was to stop."""
        interrupts.check()
        super().stage(title)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts are finished, and the rest is done unless the work was to stop."""
        interrupts.check()
        super().advance(done, total, note)


class Bars:
    """One bar for the present stage; a finished stage leaves a line behind."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._title = ""
        self._note = ""
        self._started = time.monotonic()

    def stage(self, title: str) -> None:
        """A new stage begins."""
        self.finish()
        title = printable(title)
        self._title, self._note, self._started = title, "", time.monotonic()
        self._bars.add_task(title, total=None, note="")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts are finished."""
        if not self._bars.task_ids:
            self._bars.add_task("working", total=total, note="")
        self._note = note or self._note
        self._bars.update(self._bars.task_ids[-1], completed=done, total=total, note=self._note)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._bars.console.print(printable(message), style="yellow", markup=False)

    def measured(self, figures: Mapping[str, float]) -> None:
        """They are in the notes and lines already."""

    def finish(self) -> None:
        """Replace the bar by a line with what came of it."""
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.refresh()  # or the old bar would be drawn once more below the line
        if self._title:
            from rich.text import Text

            seconds = f"{time.monotonic() - self._started:.1f} s"
            self._bars.console.print(
                Text.assemble(
                    ("✓ ", "green"),
                    self._title,
                    (f"  {self._note}" if self._note else "", "cyan"),
                    (f"  {seconds}", "dim"),
                )
            )
        self._title = ""


class Lines:
    """Plain lines for logs: where a stage begins, how it ends, and one every ten seconds between.

    The first stage reads what was given; its line waits for the next event, so that of bad input the error is the
    only line.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._title = "working"
        self._first: str | None = None
        self._n_stages = 0
        self._started = self._last = clock()

    def stage(self, title: str) -> None:
        """A new stage begins."""
        self._title = title
        self._started = self._last = self._clock()
        self._n_stages += 1
        if self._n_stages == 1:
            self._first = title
        else:
            self.say(title)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts are finished."""
        self._say_first()
        now = self._clock()
        ended = done >= total and bool(note)
        if not ended and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        parts = [f"{done}/{total}", note]
        if _FIRST_GUESS * total <= done < total:
            parts.append(f"about {(now - self._started) / done * (total - done):.0f} s left")
        self.say(f"{self._title}: " + ", ".join(part for part in parts if part))

    def say(self, message: str) -> None:
        """A line that stays."""
        self._say_first()
        print(printable(message), file=self._stream, flush=True)

    def measured(self, figures: Mapping[str, float]) -> None:
        """They are in the notes and lines already."""

    def _say_first(self) -> None:
        if self._first is not None:
            title, self._first = self._first, None
            self.say(title)
