"""What a command prints: the record on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import typer

from edgeprune.cli import messages
from edgeprune.processes import is_main

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeprune.progress import Progress


class Output:
    """One command's output and its exit code.

    Errors inside `with Output(...)` become one line on stderr and the command's exit code. Example:
    `with Output(context, as_json=False, debug=False) as output: output.show(record, lambda terminal: ...)`.
    """

    def __init__(self, context: typer.Context, *, as_json: bool, debug: bool) -> None:
        self.command = shlex.join(["edgeprune", *_arguments(context)])
        self._as_json = as_json
        self._debug, self._typed = debug, context.command_path
        self._guard = messages.Guard(debug, typed=context.command_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        handled = self._guard.__exit__(kind, error, trace)
        if error is not None and not handled:
            return False
        if self._guard.exit_code:
            raise typer.Exit(self._guard.exit_code) from None
        return handled

    @contextmanager
    def working(self, log: str | None = None, board: str | None = None) -> Iterator[Progress]:
        """Follow the library's work on stderr, in a file and in TensorBoard's folder where they are named.

        Whatever it prints goes to stderr too, also from native code.
        """
        from edgeprune.cli.bars import follow
        from edgeprune.cli.board import drawn
        from edgeprune.cli.logfile import logged

        with follow() as bars, _stdout_to_stderr(), _quiet(self._debug), logged(bars, log, self._typed) as told:
            with drawn(told, board) as progress:
                yield progress

    def show(self, record: Any, table: Callable[[ModuleType], RenderableType], **more: str) -> None:
        """Print `record`, as a table or with `more` as one JSON document; of several processes the main one does."""
        if not is_main():
            return
        if self._as_json:
            from edgeprune.runrecord import to_dict

            print(json.dumps({**more, **to_dict(record)}, indent=2, allow_nan=False), flush=True)
            return
        from rich.console import Console

        from edgeprune.report import terminal

        Console(highlight=False).print(table(terminal), crop=False)  # a line that is to be copied may be longer
        sys.stdout.flush()

    def fail(self, message: str) -> None:
        """A check was not met: say so and exit 1, after what was measured has been shown."""
        messages.warn(message)
        self._guard.exit_code = 1


def _arguments(context: typer.Context) -> list[str]:
    root = context.find_root().obj
    given = root.get(messages.ARGUMENTS) if isinstance(root, dict) else None
    return sys.argv[1:] if given is None else list(given)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send stdout to stderr on both levels: exporters and simplifiers print, some from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Hide the warnings and logs of other libraries, unless debugging."""
    if debug:
        yield
        return
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
