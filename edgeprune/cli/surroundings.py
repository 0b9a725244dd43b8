"""What a command finds itself in: the standard streams and the working folder."""

from __future__ import annotations

import os
import sys

from edgeprune.errors import InputError


def fill_streams() -> None:
    """Put the null device where stdin or stderr is closed, or the next file that is opened would become it."""
    for number, name, mode in ((0, "stdin", "r"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - it stays open to the end


def check() -> None:
    """Refuse to work where nothing can be printed, or where the working folder has gone.

    Raises:
        InputError: stdout is closed, or the working folder was deleted; PyTorch's libraries abort there.
    """
    if sys.stdout is None:
        raise InputError("stdout: expected a place to print to, got a closed one (>&-); > /dev/null prints nowhere")
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the working folder: expected one that is there, got a deleted one; cd elsewhere") from error
