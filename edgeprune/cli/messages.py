"""Exceptions become one line on stderr and an exit code, here and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from edgeprune.cli import interrupts, spokesman
from edgeprune.errors import EdgepruneError, InputError, LostProcessError
from edgeprune.lines import MAX_LINE, error_text, one_line, printable, said
from edgeprune.processes import is_main, n_processes, rank

ARGUMENTS = "edgeprune.arguments"  # where the context's object keeps the command line as it was typed
INTERRUPTED = 130
FAULT = 3  # of edgeprune itself
_PREFIX = "edgeprune: "
_MAX_MESSAGE = MAX_LINE - len(_PREFIX)


def _usage(error: BaseException, typed: str) -> str:
    """What Typer says of a wrong command line; its exceptions share `format_message`, whatever their class."""
    text: str = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    where = getattr(context, "command_path", typed)
    text = text.replace("Value error, ", "")  # pydantic's prefix says nothing that the rest does not
    return f"{text[:1].lower()}{text[1:].rstrip('.')} (see '{where} --help')"


def _os(error: BaseException) -> str:
    assert isinstance(error, OSError)
    what = error.strerror or error_text(error)
    return f"{error.filename}: {what}" if error.filename else what


def _ended(error: BaseException) -> str:
    return f"ended by SIGTERM: one of {n_processes()} processes has ended, or torchrun was told to stop"


def _unexpected(error: BaseException) -> str:
    return f"unexpected {said(error)} (--debug prints all that a report needs: it is a fault of edgeprune)"


# First match wins: (exceptions, exit code, message). An exit code of None is the exception's own.
_TABLE: tuple[tuple[tuple[type[BaseException], ...], int | None, Callable[[BaseException], str]], ...] = (
    ((EdgepruneError,), None, error_text),
    ((KeyboardInterrupt,), INTERRUPTED, lambda error: "interrupted; nothing half-written is left"),
    ((interrupts.Ended,), 1, _ended),
    ((MemoryError,), 2, lambda error: "out of memory"),
    ((OSError,), 2, _os),
    ((BaseException,), FAULT, _unexpected),
)


def describe(error: BaseException, typed: str = "edgeprune") -> tuple[int, str]:
    """The exit code of `error` and what it says, in one line.

    `typed` is the command, for an error of the command line that does not know it: what is checked once all options
    are together.
    """
    if hasattr(error, "format_message"):
        return 2, one_line(_usage(error, typed), _MAX_MESSAGE)
    for kinds, code, message in _TABLE:
        if isinstance(error, kinds):
            return getattr(error, "exit_code", FAULT) if code is None else code, one_line(message(error), _MAX_MESSAGE)
    raise AssertionError  # the last row takes every exception


def check_arguments(given: Sequence[str]) -> None:
    """Raise InputError for an empty argument, e.g. of a variable that is not set: `--out "$OUT"`."""
    for before, argument in zip(["edgeprune", *given], given, strict=False):
        if not argument.strip() or re.fullmatch(r"--[a-z-]+=", argument):
            where = argument if argument.strip() else before
            raise InputError(f"expected a value after {where!r}, got an empty one")


def warn(message: str) -> None:
    """Say one line on stderr."""
    print(f"{_PREFIX}{one_line(message, _MAX_MESSAGE)}", file=sys.stderr)


class Guard:
    """Turns whatever is raised inside it into a line on stderr and `exit_code`.

    Around a whole command line `SystemExit` is how Typer ends; within a command it is what some library wants, which
    does not decide how a command ends.

    Example: `with Guard(debug=False) as guard: work()`, then `sys.exit(guard.exit_code)`.
    """

    def __init__(self, debug: bool, *, may_exit: bool = False, typed: str = "edgeprune") -> None:
        self.debug = debug
        self._typed = typed
        self.exit_code = 0
        self._may_exit = may_exit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is None:
            return False
        if isinstance(error, SystemExit) and self._may_exit:
            return False
        if _is_closed_pipe(error):
            self.exit_code = 1
            return True
        self.exit_code, line = describe(_struck_first(error), self._typed)
        if not is_main():
            line = f"process {rank()}: {line}"
        if self.debug:
            with contextlib.suppress(BaseException):  # what it was raised from may be a class of the user's that raises
                print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
            if self.exit_code == FAULT:
                from edgeprune.versions import versions  # slow to import, and rarely needed

                warn(", ".join(f"{name} {version}" for name, version in versions().items()))
        with spokesman.turn() as is_ours:
            if is_ours:
                warn(line)
        return True


def _struck_first(error: BaseException) -> BaseException:
    """What ended this process: the Ctrl-C, where it is told of others that have ended by the same."""
    by_others = isinstance(error, (LostProcessError, interrupts.Ended))
    return KeyboardInterrupt() if by_others and interrupts.is_struck() else error


def _is_closed_pipe(error: BaseException) -> bool:
    """Whether the reader of our output has gone (`edgeprune inspect m.pt | head`); then there is nobody to tell."""
    if not (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
    return True
