"""Ctrl-C: never lost, wherever it strikes.

Python raises KeyboardInterrupt wherever it happens to be. A library that catches everything (an import that may fail,
a callback from C) swallows it, and the work would go on. It is kept here as well, and raised again when the work next
tells of itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_struck = threading.Event()


@contextmanager
def noticed() -> Iterator[None]:
    """Keep every Ctrl-C inside for `check`; a process that ignores it, as a shell's background jobs do, still does."""
    taken = threading.current_thread() is threading.main_thread()
    taken = taken and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not taken:
        yield
        return
    _struck.clear()
    signal.signal(signal.SIGINT, _strike)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _struck.clear()


def check() -> None:
    """Raise KeyboardInterrupt where one was swallowed."""
    if _struck.is_set():
        raise KeyboardInterrupt


def _strike(number: int, frame: FrameType | None) -> None:
    _struck.set()
    raise KeyboardInterrupt
