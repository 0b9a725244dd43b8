"""`--log FILE`: what a command tells of its work, one JSON object a line, for programs that follow it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from edgeprune.cli import messages
from edgeprune.files import writing_to
from edgeprune.processes import is_main
from edgeprune.progress import Passing

if TYPE_CHECKING:
    from edgeprune.progress import Progress

_SECONDS_BETWEEN_LINES = 1.0


@contextmanager
def logged(progress: Progress, path: str | None, typed: str) -> Iterator[Progress]:
    """The progress, which is written to a file too where one is named; lines are added to those that are there.

    The last line says how it ended: `{"event": "end", "exit": 0}`, with the error where there was one.

    Args:
        typed: the command.

    Raises:
        InputError: the file cannot be written to.
    """
    if path is None or not is_main():
        yield progress
        return
    with writing_to(Path(path).absolute()):
        file = open(path, "a", encoding="utf-8")
    with file:
        own = Logged(progress, file)
        try:
            yield own
        except BaseException as error:
            code, message = messages.describe(error, typed)
            own.write("end", exit=code, error=message)
            raise
        own.write("end", exit=0)


class Logged(Passing):
    """Passes all on to another progress, and writes it to a file; of a stage's parts at most one line a second."""

    def __init__(self, progress: Progress, file: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(progress)
        self._file, self._clock = file, clock
        self._began = self._started = clock()
        self._last = -_SECONDS_BETWEEN_LINES
        self._title = ""

    def stage(self, title: str) -> None:
        """A new stage begins."""
        super().stage(title)
        self._title, self._started, self._last = title, self._clock(), -_SECONDS_BETWEEN_LINES
        self.write("stage", title=title)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts are finished: `left_s` is how long the others of this stage take at that speed."""
        super().advance(done, total, note)
        now = self._clock()
        if done < total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        left = (now - self._started) / done * (total - done) if done else None
        self.write("progress", title=self._title, done=done, total=total, note=note, left_s=left and round(left, 1))

    def say(self, message: str) -> None:
        """A line that stays."""
        super().say(message)
        self.write("said", message=message)

    def measured(self, figures: Mapping[str, float]) -> None:
        """Figures, each by its name; what is no number is null."""
        super().measured(figures)
        self.write("figures", **{name: value if math.isfinite(value) else None for name, value in figures.items()})

    def write(self, event: str, **what: object) -> None:
        """Add a line, with the time of day and the seconds since the beginning."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "seconds": round(self._clock() - self._began, 3), "event": event, **what}
        with writing_to(Path(self._file.name).absolute()):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
