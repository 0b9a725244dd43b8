"""Lines of the user's own code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache

import torch
from torch import fx

_ROOTS = {
    "torch": os.path.dirname(torch.__file__),
    "edgeprune": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
}

_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node, `file:line`, or the empty string."""
    return next((place for place, _ in _own_lines(node)), "")


def written_numbers(node: fx.Node) -> set[int]:
    """The whole numbers that stand as such in the lines of the user's own code that made a node.

    Of a statement over several lines only the one that was running is known.
    """
    return {int(number) for _, text in _own_lines(node) for number in _NUMBER.findall(text)}


def _own_lines(node: fx.Node) -> Iterator[tuple[str, str]]:
    """`file:line` and its text, for each line of the user's own code on the way to a node, innermost first."""
    trace = (node.meta.get("stack_trace") or "").splitlines()
    for number, line in reversed(list(enumerate(trace))):
        path, found, rest = line.strip().removeprefix("File ").partition(", line ")
        path = path.strip('"')
        if found and line.strip().startswith("File ") and not path.startswith("<") and not library_part(path):
            following = trace[number + 1].strip() if number + 1 < len(trace) else ""
            yield f"{path}:{rest.partition(',')[0]}", "" if following.startswith("File ") else following


@cache
def library_part(path: str) -> str:
    """The path of one of PyTorch's or edgeprune's files from the package on; empty for every other file.

    Programs come from other machines, and PyTorch names some of its files from the package on itself: what follows the
    package's name tells them from a user's file in a folder of that name.

    Example: of `/src/pytorch/torch/nn/modules/rnn.py` it is `torch/nn/modules/rnn.py`, of `/home/me/torch/net.py` none.
    """
    parts = path.replace("\\", "/").split("/")
    for place, name in enumerate(parts):
        if name in _ROOTS and (_is_installed(parts, place) or _has(name, parts[place + 1 :])):
            return "/".join(parts[place:])
    return ""


def _is_installed(parts: list[str], place: int) -> bool:
    """Whether the folder at this place of a path is an installed package."""
    return place > 0 and parts[place - 1] in ("site-packages", "dist-packages")


def _has(package: str, parts: list[str]) -> bool:
    """Whether the package here has a file of this path."""
    return os.path.isfile(os.path.join(_ROOTS[package], *parts))
