"""Ctrl-C: never lost, wherever it strikes; and the end of processes that `torchrun` started together.

Python raises KeyboardInterrupt wherever it happens to be. A library that catches everything (an import that may fail,
a callback from C) swallows it, and the work would go on. It is kept here as well, and raised again when the work next
tells of itself.

Where one of several processes has ended, `torchrun` sends the others SIGTERM, before they have said that. It is an
exception in them, by which what they hold is left as it should be, and one of them says so. Python runs a signal's
handler between two of its own steps: a process that waits for the others inside of PyTorch hears nothing, and
`torchrun` would kill it after half a minute. A thread hears it there.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from edgeprune.processes import n_processes

_HEARS_WITHIN = 2.0  # seconds in which Python's own steps come to an end

_struck = threading.Event()
_told_to_end = threading.Event()


class Ended(BaseException):
    """This process was told to end with those that `torchrun` started beside it."""


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


@contextmanager
def ended_together() -> Iterator[None]:
    """Raise `Ended` inside where `torchrun` ends this process; one that is alone ends at once, as ever."""
    if n_processes() == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    _told_to_end.clear()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        with _heard_at_once():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _heard_at_once() -> Iterator[None]:
    """A thread inside that ends the process where SIGTERM cannot be raised in the main one."""
    reads, writes = socket.socketpair()
    writes.setblocking(False)
    before = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reads,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writes.close()  # which the thread reads as the end


def _listen(signals: socket.socket) -> None:
    with signals:
        while struck := signals.recv(64):
            if signal.SIGTERM in struck and not _told_to_end.wait(_HEARS_WITHIN):
                os._exit(1)


def check() -> None:
    """Raise KeyboardInterrupt where one was swallowed."""
    if _struck.is_set():
        raise KeyboardInterrupt


def is_struck() -> bool:
    """Whether there was a Ctrl-C: it strikes all processes, and that another has ended may be noticed before it."""
    return _struck.is_set()


def _end(number: int, frame: FrameType | None) -> None:
    _told_to_end.set()
    signal.signal(number, signal.SIG_IGN)  # what is said at the end is not to be cut off
    raise Ended


def _strike(number: int, frame: FrameType | None) -> None:
    _struck.set()
    raise KeyboardInterrupt
