"""The `edgeprune` command, also as `python -m edgeprune`: Ctrl-C is answered for before anything else is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130
_OBJECTS = (10_000, 10, 10)  # what sets off searches for garbage: imports alone make a million objects that stay


def main() -> int:
    """Run the command line and return the exit code; a Ctrl-C ends in one line at any time."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, _leave)
    gc.set_threshold(*_OBJECTS)
    from edgeprune.cli.app import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = run()
    except KeyboardInterrupt:  # a second one, while the first was answered
        return _INTERRUPTED
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; Python's own end is not to be disturbed
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun. An exception might be swallowed by whatever is being imported."""
    os.write(2, b"edgeprune: interrupted; nothing half-written is left\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
