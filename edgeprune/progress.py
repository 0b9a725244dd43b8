"""How long work tells of itself; the library speaks through this interface, the command line draws bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """What a caller that wants to follow the work implements."""

    def stage(self, title: str) -> None:
        """A new stage begins, e.g. "finetune 2"."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts of the present stage are finished; `note` is e.g. "loss 0.31, val 97.2 %"."""

    def say(self, message: str) -> None:
        """A line that stays, e.g. what was assumed."""

    def measured(self, figures: Mapping[str, float]) -> None:
        """Figures for those who keep or draw them: `{"train/loss": 0.31}`, after an epoch or a step of a search."""


class Silent:
    """Says nothing."""

    def stage(self, title: str) -> None:
        """Ignore it."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Ignore it."""

    def say(self, message: str) -> None:
        """Ignore it."""

    def measured(self, figures: Mapping[str, float]) -> None:
        """Ignore it."""


class Passing:
    """Passes all on to another progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, title: str) -> None:
        """A new stage begins."""
        self._progress.stage(title)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` parts are finished."""
        self._progress.advance(done, total, note)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._progress.say(message)

    def measured(self, figures: Mapping[str, float]) -> None:
        """Figures of what is done."""
        self._progress.measured(figures)
