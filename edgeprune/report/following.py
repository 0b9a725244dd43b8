"""The command that goes on from what was made, to be copied from the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from edgeprune.report import formats as fmt
from edgeprune.report.sheet import unbroken


def following(command: str, *words: str | Path, data: str | None = None, task: str | None = None) -> Text:
    """The line with what to run next, which works as it stands.

    Args:
        command: of edgeprune's, with its options.
        words: further ones, as they are before a shell quotes them.
        data: what the file that the command reads has on record; it is named where no command runs it on record alone.
        task: the same.
    """
    again = [] if data is None else _asked_again(data, task)
    return unbroken("  next    ", " ".join(("edgeprune", command, *map(fmt.quoted, (*words, *again)))), "bold")


def _asked_again(data: str, task: str | None) -> list[str]:
    from edgeprune.formats.trust import asked_again  # torch, which commands without a network start without

    return asked_again(data, task)
