"""`--tensorboard DIR`: the figures of a command's work as curves that TensorBoard draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import InputError
from edgeprune.files import writing_to
from edgeprune.processes import is_main

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from edgeprune.progress import Progress


@contextmanager
def drawn(progress: Progress, folder: str | None) -> Iterator[Progress]:
    """The progress, whose figures are written for TensorBoard too where a folder is named.

    Raises:
        InputError: the package is missing, or the folder cannot be written to.
    """
    if folder is None or not is_main():
        yield progress
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        missing = "--tensorboard: expected the package tensorboard, got none; pip install 'edgeprune[tensorboard]'"
        raise InputError(missing) from None
    with writing_to(Path(folder).absolute()):
        writer = SummaryWriter(folder)
    try:
        yield Drawn(progress, writer)
    finally:
        writer.close()


class Drawn:
    """Passes all on to another progress, and adds each figure to the curve of its name: the first, the second, ..."""

    def __init__(self, progress: Progress, writer: SummaryWriter) -> None:
        self._progress, self._writer = progress, writer
        self._counts: Counter[str] = Counter()

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
        """Add a point to the curve of each."""
        self._progress.measured(figures)
        for name, value in figures.items():
            self._counts[name] += 1
            self._writer.add_scalar(name, value, self._counts[name])
        self._writer.flush()
