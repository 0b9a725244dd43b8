"""The boundary of the library: what is raised by accident inside a public function becomes one error of edgeprune's."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from torch import fx
from torch.export import ExportedProgram

from edgeprune.errors import EdgepruneError, InputError, InternalError
from edgeprune.graph.lines import source_line
from edgeprune.lines import said

P = ParamSpec("P")
R = TypeVar("R")
_REPORT = "this is a fault of edgeprune, please report it with the model"
_OUTSIDE = (EdgepruneError, OSError, MemoryError)  # edgeprune's own, and what the machine has to say


def public(stage: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function raise nothing but edgeprune's errors, and what the machine has to say (OSError, MemoryError).

    Example: `@public("cut")`; a KeyError inside becomes "cut, at node 'view_3' (net.py:12): KeyError: ...".
    """

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except _OUTSIDE:
                raise
            except Exception as error:
                try:
                    given = inspect.signature(function).bind(*args, **kwargs).arguments
                except TypeError:
                    raise error from None  # a wrong call: the function never began
                _check_program(stage, given.get("program"))
                raise InternalError(_told(stage, error)) from error

        return guarded

    return wrap


def _check_program(stage: str, given: Any) -> None:
    """Raise InputError where a function that failed was given another thing than a program for one."""
    if given is not None and not isinstance(given, ExportedProgram):
        raise InputError(
            f"{stage}: expected an exported program, as edgeprune.capture gives it, got a {type(given).__name__}"
        )


def _told(stage: str, error: BaseException) -> str:
    """One line: the stage, the node that was worked on and its line in the model, and what was raised."""
    node = next(_nodes(error), None)
    where = ""
    if node is not None:
        line = source_line(node)
        where = f", at node {node.name!r}" + (f" ({line})" if line else "")
    return f"{stage}{where}: {said(error)}; {_REPORT}"


def _nodes(error: BaseException) -> Iterator[fx.Node]:
    """The nodes that the functions on the way to an error worked on, the innermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        known = frame.f_locals
        for found in (known.get("node"), known.get("n"), getattr(known.get("call"), "node", None), _current(known)):
            if isinstance(found, fx.Node):
                yield found


def _current(known: dict[str, Any]) -> Any:
    """The node that an analysis is at."""
    return getattr(known.get("self"), "_node", None)
