"""What a command made of a mutant, and whether that is how it should be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mutants.edits import MARKER

MAX_SECONDS = 20.0
MAX_MIB = 1024
MAX_MESSAGE = 300
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended.

    Args:
        exit_code: of the process; a signal's number, negative, where one ended it.
        seconds: of the processor.
        mib: how much the memory grew, at most, from before the command began.
        out: what stood on stdout.
        err: what stood on stderr.
        ran: whether a mutant's code has run.
    """

    exit_code: int
    seconds: float
    mib: float
    out: str
    err: str
    ran: bool = False

    @property
    def message(self) -> str:
        """The line that tells of the error; empty where there is none."""
        return next((line for line in self.err.splitlines() if line.startswith("edgeprune: ")), "")

    def faults(self) -> list[str]:
        """What is wrong with it."""
        lines = [line for line in self.err.splitlines() if line.startswith("edgeprune: ")]
        told = {
            f"exit code {self.exit_code}": self.exit_code not in (0, 1, 2),
            "an unexpected error": self.message.startswith("edgeprune: unexpected "),
            f"{self.seconds:.0f} s": self.seconds > MAX_SECONDS,
            f"{self.mib:.0f} MiB": self.mib > MAX_MIB,
            f"{len(lines)} lines of error": len(lines) != (self.exit_code != 0),
            f"a line of {len(self.message)} characters": len(self.message) > MAX_MESSAGE,
            "a control character": _CONTROL.search(self.out + self.err) is not None,
            "a traceback": "Traceback" in self.err,
            "its code ran": self.ran,
        }
        return [fault for fault, holds in told.items() if holds]


def has_run(folder: Path) -> bool:
    """Whether the file appeared that a mutant's code would make."""
    return any(path.name == MARKER for path in folder.rglob(MARKER))
