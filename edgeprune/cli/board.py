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
from edgeprune.progress import Passing

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


class Drawn(Passing):
    """Passes all on to another progress, and adds each figure to the curve of its name: the first, the second, ..."""

    def __init__(self, progress: Progress, writer: SummaryWriter) -> None:
        super().__init__(progress)
        self._writer = writer
        self._counts: Counter[str] = Counter()

    def measured(self, figures: Mapping[str, float]) -> None:
        """Add a point to the curve of each."""
        super().measured(figures)
        for name, value in figures.items():
            self._counts[name] += 1
            self._writer.add_scalar(name, value, self._counts[name])
        self._writer.flush()
