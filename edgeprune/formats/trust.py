"""What a file that is read may name: a file is whoever wrote it, and need not be the user's.

A checkpoint, a .pt2 or a run.json records the data that a model was trained on, the architecture that it has, the file
that it came from. All of it passes here before anything is done with it. It may name data that edgeprune reads itself
and networks of torchvision and timm with random weights. A factory, which is code, runs only where the user names it,
on the command line or by `trust_recorded`; and a file is opened only where the user works.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edgeprune.data import specs
from edgeprune.errors import InputError
from edgeprune.formats import architectures
from edgeprune.tasks.registry import is_own

FLAG = "--trust-recorded"
_LIBRARIES = ("torchvision", "timm")
_NAME = re.compile(r"\w+(\.\w+)?")  # a tag of timm's may follow
_WORD = re.compile(r"\w*")
# What makes a builder fetch or read weights.
_WEIGHTS = re.compile(r"weights\w*|pretrained\w*|checkpoint\w*|cache_dir")
_SHOWN = 130  # characters


def recorded_data(spec: str, where: str, trusted: bool) -> str:
    """The data set that a file records, once it may be opened.

    Args:
        spec: as it stands in the file, see `open_data`.
        where: the file, for the message.
        trusted: the user trusts what it records.

    Raises:
        InputError: it names code, or a place that no data set lies at; shows it as it stands.
    """
    if trusted:
        return spec
    if not specs.is_built_in(spec):
        raise _names_code("data", "built-in data", spec, where)
    place = specs.place_of(spec)
    if place is not None and _is_strange(place):
        raise InputError(
            f"{where}: expected data on record that lie in a folder of their own here, got {quoted(spec)}; --data "
            f"names what to read, or {FLAG}"
        )
    return spec


def recorded_arch(spec: str, where: str, trusted: bool) -> str:
    """The architecture that a file records, once it may be built; arguments and errors as `recorded_data`."""
    if trusted:
        return spec
    source, name, arguments = architectures.parse(spec)
    known = source in _LIBRARIES and _NAME.fullmatch(name)
    if not known or not all(_is_harmless(*argument) for argument in arguments.items()):
        raise _names_code("arch", "torchvision:NAME or timm:NAME without weights", spec, where)
    return spec


def recorded_task(spec: str, where: str, trusted: bool) -> str:
    """The task that a file records, once it may be opened; arguments and errors as `recorded_data`."""
    if trusted or not is_own(spec):
        return spec
    raise _names_code("task", "a task of edgeprune's", spec, where)


def asked_again(data: str, task: str | None) -> list[str]:
    """The options that a command needs beside a file of the user's own that records these, which it would not run."""
    found = []
    for option, spec, check in (("data", data, recorded_data), ("task", task, recorded_task)):
        try:
            if spec is not None:
                check(spec, "", trusted=False)
        except InputError:
            found += [f"--{option}", spec or ""]
    return found


def recorded_file(path: str, where: str, folder: Path, trusted: bool) -> Path:
    """A file that another file records, once it may be read: it lies in the working folder, or in `folder`.

    Links are followed before it is told where it lies.

    Raises:
        InputError: it lies elsewhere; shows the path as it stands.
    """
    if trusted:
        return Path(path)
    inside = False
    if not _is_remote(path):
        inside = any(_real(path).is_relative_to(_real(root)) for root in (os.curdir, folder))
    if not inside:
        raise InputError(f"{where}: expected a recorded file in the working folder, got {quoted(path)}")
    return Path(path)


def same_arch(one: str, other: str) -> bool:
    """Whether two specs build the same network: their files are one, their arguments equal in any order."""
    if one == other:
        return True
    try:
        parsed = [architectures.parse(spec) for spec in (one, other)]
    except InputError:
        return False
    sources = [os.path.realpath(source) if architectures.is_file(source) else source for source, _, _ in parsed]
    return sources[0] == sources[1] and parsed[0][1:] == parsed[1][1:]


def quoted(text: str) -> str:
    """A recorded text as it stands, quoted; of a long one the ends and the length."""
    whole = repr(text)
    if len(whole) <= _SHOWN:
        return whole
    return f"{whole[: _SHOWN // 2]} ... {whole[-_SHOWN // 2 :]} ({len(text):,} characters)"


def _names_code(option: str, expected: str, spec: str, where: str) -> InputError:
    return InputError(
        f"{where}: expected {expected} on record, got {quoted(spec)}, which is code: it runs only if --{option} names "
        f"it, or with {FLAG}"
    )


def _is_harmless(name: str, value: Any) -> bool:
    """Whether an argument sizes a network: numbers and plain words, and nothing that asks for weights."""
    if _WEIGHTS.fullmatch(name):
        return value is None or value is False
    if isinstance(value, (tuple, list)):
        return all(_is_harmless(name, part) for part in value)
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and _is_word(value))


def _is_word(text: str) -> bool:
    return _WORD.fullmatch(text) is not None


def _is_remote(place: str) -> bool:
    """Whether a path leads to another machine, or is none: `//host/share`, or with control characters."""
    return place.startswith(("//", "\\\\")) or re.search(r"[\x00-\x1f\x7f]|^\w{2,}://", place) is not None


def _is_strange(place: str) -> bool:
    """Whether no data set lies there: on another machine, in the system's own trees, or around all of the user's."""
    if _is_remote(place):
        return True
    found, home = _real(place), _real(os.path.expanduser("~"))
    system = any(found.is_relative_to(root) for root in ("/proc", "/sys", "/dev"))
    return system or found == home or found in home.parents


def _real(place: str | Path) -> Path:
    """Where a path leads, its links followed as far as they go."""
    return Path(os.path.realpath(place))
