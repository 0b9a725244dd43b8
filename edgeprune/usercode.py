"""What a user's code raises: an InputError that names the file and the line, whatever it was.

A factory, a data set or a network's forward may call `sys.exit(0)`, raise an exception of its own that is no
`Exception`, or one whose message cannot be read. None of it decides how a command ends. Ctrl-C stays Ctrl-C: it comes
as a signal, which is watched for while the user's code runs.

What it sets of PyTorch (the default type, threads, gradients, determinism) holds while it runs, and again the next time
that it does: what edgeprune does in between goes by edgeprune's own settings.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Any

from edgeprune import errors
from edgeprune.errors import InputError
from edgeprune.lines import said

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_EDGEPRUNE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ERRORS = tuple(kind for kind in vars(errors).values() if isinstance(kind, type))
_OTHERS, _PACKAGE, _OWN = 0, 1, 2
# A class of the user's may have properties of these names, which run its code.
_CAUSE, _TRACEBACK = (BaseException.__dict__[name].__get__ for name in ("__cause__", "__traceback__"))
_named: set[str] = set()


@contextmanager
def calling_user_code(told: str) -> Iterator[None]:
    """Around a call of the user's code: whatever comes out of it, but for edgeprune's own refusals, is an InputError.

    Args:
        told: what the message begins with, e.g. "nets.py:cnn: the factory raised"; what was raised follows.

    Raises:
        InputError: the body raised; names the user's file and line.
        KeyboardInterrupt: Ctrl-C was pressed while the body ran, even where the body made something else of it.
    """

    def refused(error: BaseException) -> InputError | None:
        own = issubclass(type(error), InputError) and _is_ours(error)
        return None if own else InputError(f"{told} {failure(error)}")

    with _turning_errors(refused), UsersSettings():
        yield


@contextmanager
def running_user_code(kind: type[InputError] = InputError) -> Iterator[None]:
    """Around work of edgeprune's that calls the user's code in between, such as training a network of theirs.

    What went through a line of the user's becomes an error of this `kind`; the rest is not theirs and stays what it is.

    Raises:
        InputError: as `calling_user_code`.
        KeyboardInterrupt: as there.
    """

    def refused(error: BaseException) -> InputError | None:
        theirs = _went_through_users(error) and not _is_ours(error)
        return kind(f"expected code that runs, got {failure(error)}") if theirs else None

    with _turning_errors(refused):
        yield


@dataclass(frozen=True, slots=True)
class _Setting:
    """One of PyTorch's settings; one that `stays` is the user's again when their code runs the next time."""

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]
    stays: bool = True


def _default_device(torch: Any) -> Any:
    module = sys.modules.get("torch.utils._device")  # PyTorch imports it where it first needs it
    return torch.get_default_device() if module is not None and module.CURRENT_DEVICE is not None else None


def _deterministic(torch: Any) -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


_SETTINGS = (
    _Setting(lambda torch: torch.get_default_dtype(), lambda torch, value: torch.set_default_dtype(value)),
    _Setting(_default_device, lambda torch, value: torch.set_default_device(value)),
    _Setting(lambda torch: torch.get_num_threads(), lambda torch, value: torch.set_num_threads(value)),
    _Setting(_deterministic, lambda torch, value: torch.use_deterministic_algorithms(value[0], warn_only=value[1])),
    _Setting(
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
    _Setting(lambda torch: torch.is_grad_enabled(), lambda torch, value: torch.set_grad_enabled(value), stays=False),
    _Setting(
        lambda torch: torch.is_anomaly_enabled(),
        lambda torch, value: torch.autograd.set_detect_anomaly(value),
        stays=False,
    ),
)
_theirs: dict[_Setting, Any] = {}


class UsersSettings(ContextDecorator):
    """Around a call of the user's code: PyTorch's settings are as it has left them, then edgeprune's again.

    A class, as is the next: contextlib's generators write to the errors that go through them, which may run their code.
    """

    def __init__(self) -> None:
        self._entered: list[tuple[dict[_Setting, Any], dict[_Setting, Any]] | None] = []

    def _recreate_cm(self) -> UsersSettings:
        """A decorated function has one of its own for each call."""
        return UsersSettings()

    def __enter__(self) -> None:
        torch = sys.modules.get("torch")
        if torch is None:  # nothing of edgeprune's goes by them yet
            self._entered.append(None)
            return
        before = {setting: setting.read(torch) for setting in _SETTINGS}
        given = {setting: _theirs.get(setting, value) for setting, value in before.items()}
        _set(torch, before, given)
        self._entered.append((before, given))

    def __exit__(self, *_: object) -> None:
        entered = self._entered.pop()
        if entered is None:
            return
        torch, (before, given) = sys.modules["torch"], entered
        left = {setting: setting.read(torch) for setting in _SETTINGS}
        _theirs.update({one: value for one, value in left.items() if one.stays and value != given[one]})
        _set(torch, left, before)


class RandomStateKept:
    """Around code of the user's that may seed: PyTorch's random state, from which edgeprune draws, is put back."""

    def __enter__(self) -> None:
        torch: Any = sys.modules.get("torch")
        self._state = None if torch is None else torch.get_rng_state()

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            sys.modules["torch"].set_rng_state(self._state)


def _set(torch: Any, current: dict[_Setting, Any], wanted: dict[_Setting, Any]) -> None:
    for setting, value in wanted.items():
        if current[setting] != value:
            setting.write(torch, value)


@contextmanager
def _turning_errors(refused: Callable[[BaseException], InputError | None]) -> Iterator[None]:
    """Around the user's code: what comes out of it is raised as what `refused` makes of it, None as it is.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed while the body ran, even where the body made something else of it.
    """
    with _watched_ctrl_c() as pressed:
        try:
            yield
        except BaseException as error:
            if pressed():
                raise KeyboardInterrupt from error
            told = refused(error)
            if told is None:
                raise
            raise told from error
        if pressed():
            raise KeyboardInterrupt


def failure(error: BaseException) -> str:
    """One line on an error of the user's code, e.g. "KeyError: 'lost' (at nets.py:12 in cnn)"."""
    line = user_line(error)
    if type(error) in (SyntaxError, IndentationError, TabError):
        assert isinstance(error, SyntaxError)
        line = f"{error.filename}:{error.lineno}" if error.filename else line
    return said(error) + (f" (at {line})" if line else "")


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and all(cause is not one for one in found):
        found.append(cause)
        cause = _CAUSE(cause)
    return found


def user_line(error: BaseException) -> str:
    """The innermost line of the user's that an error went through, as `file:line in function`, else a package's."""
    for wanted in (_OWN, _PACKAGE):
        for one in reversed(causes(error)):
            places = [
                f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
                for frame, line in traceback.walk_tb(_TRACEBACK(one))
                if _whose(frame.f_code.co_filename) == wanted
            ]
            if places:
                return places[-1]
    return ""


def place_of(function: Callable[..., Any]) -> str:
    """Where a function of the user's begins, e.g. " (at tasks.py:12 in value)"; "" where no line is known."""
    import inspect  # here, for the same reason as sysconfig below

    code = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__code__", None)
    return f" (at {code.co_filename}:{code.co_firstlineno} in {code.co_name})" if code else ""


def name_own(place: str | os.PathLike[str]) -> None:
    """From now on the code in this file or folder is the user's, wherever it is installed: they named it."""
    _named.add(os.path.abspath(place))


def _went_through_users(error: BaseException) -> bool:
    frames = traceback.walk_tb(_TRACEBACK(error))
    return any(_whose(frame.f_code.co_filename) == _OWN for frame, _ in frames)


def _whose(file: str) -> int:
    """Whose code a file holds: the user's own, an installed package's, or Python's, PyTorch's and edgeprune's."""
    if any(file == place or file.startswith(place + os.sep) for place in _named):
        return _OWN
    if file.startswith(("<", _EDGEPRUNE, *_torch())):
        return _OTHERS
    if any(part in file for part in _INSTALLED):
        return _PACKAGE
    return _OTHERS if file.startswith(_python()) else _OWN


@cache
def _python() -> tuple[str, ...]:
    """The folders of Python's own library."""
    import sysconfig  # takes as long as all the rest here, and help needs none of it

    return tuple(os.path.normpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))


def _torch() -> tuple[str, ...]:
    """PyTorch's folder, where it is loaded: without it no line of it can have run."""
    file = getattr(sys.modules.get("torch"), "__file__", None)
    return (os.path.dirname(file) + os.sep,) if file else ()


def _is_ours(error: BaseException) -> bool:
    """Whether edgeprune raised it on purpose: one of its classes, from a line of its own, which tells the place."""
    if not any(type(error) is kind for kind in _ERRORS):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(_TRACEBACK(error))]
    return bool(frames) and frames[-1].f_code.co_filename.startswith(_EDGEPRUNE)


@contextmanager
def _watched_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed since; it still does what it did before.

    Signals come to the main thread alone, so that in another one nothing has to be watched.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    times: list[int] = []

    def pressed(number: int, frame: FrameType | None) -> None:
        times.append(number)
        previous(number, frame)

    signal.signal(signal.SIGINT, pressed)
    try:
        yield lambda: bool(times)
    finally:
        signal.signal(signal.SIGINT, previous)
