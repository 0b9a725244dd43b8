"""Lines of the user's own code."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import fx

_ROOTS = {
    "torch": os.path.dirname(torch.__file__),
    "edgeprune": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
}


def source_line(node: fx.Node) -> str:
    """The innermost line of the user's own code that made a node, `file:line`, or the empty string."""
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    for line in reversed(lines):
        path, _, rest = line.removeprefix("File ").partition(", line ")
        path = path.strip('"')
        if not path.startswith("<") and not library_part(path):
            return f"{path}:{rest.partition(',')[0]}"
    return ""


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
