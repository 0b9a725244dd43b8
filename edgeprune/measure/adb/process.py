"""A program of this machine that speaks for a device: how long it may take, and how much it may say."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from edgeprune.errors import InputError
from edgeprune.lines import one_line

MOST_BYTES = 2**22  # of what is printed; a benchmark prints some thousands
_LEFT_OPEN = 10.0  # seconds for what holds the output open after its program has ended
_LAST_LINES = 3
_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Said:
    """How a program ended, and all that it printed, errors among it."""

    code: int
    text: str

    @property
    def last_words(self) -> str:
        """E.g. `; its last words: error: closed`; nothing where it said nothing."""
        lines = [line.strip() for line in self.text[-_CHUNK:].splitlines() if line.strip()]
        return f"; its last words: {one_line(' | '.join(lines[-_LAST_LINES:]), 160)}" if lines else ""


def asked(command: Sequence[str], what: str, seconds: float) -> Said:
    """Run a program to its end.

    Args:
        command: the program and its arguments; no shell reads them.
        what: what fails, for the message, e.g. `adb push of slim.tflite`.
        seconds: after which it is ended.

    Raises:
        InputError: it cannot be run, takes too long or prints without end; with its last words.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(f"{what}: {command[0]} cannot be run: {error.strerror or error}") from error
    heard = _Heard(process)
    try:
        process.wait(seconds)
        is_late = False
    except subprocess.TimeoutExpired:
        is_late = True
    finally:
        _end(process)
        text = heard.text()
    said = Said(process.returncode, text)
    if is_late:
        raise InputError(f"{what}: it took more than {seconds:g} s{said.last_words}")
    if heard.is_flood:
        raise InputError(f"{what}: expected at most {MOST_BYTES:,} bytes of output, got more{said.last_words}")
    return said


class _Heard:
    """What a process prints, read as it comes; one that prints too much is ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.is_flood = False
        self._process, self._bytes = process, bytearray()
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        """All of it; what a child left behind still holds open is not waited for."""
        self._thread.join(_LEFT_OPEN)
        return bytes(self._bytes).decode("utf-8", "replace")

    def _read(self, stream: IO[bytes]) -> None:
        while piece := os.read(stream.fileno(), _CHUNK):
            self._bytes += piece
            if len(self._bytes) > MOST_BYTES:
                self.is_flood = True
                _kill(self._process)
                break
        stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started, if it still runs: also where this one is interrupted."""
    if process.poll() is None:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
