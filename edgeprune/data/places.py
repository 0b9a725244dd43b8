"""Where recorded data lie when a model is used in another folder than the one that it was made in."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDERS = 3  # the model's own and two above it, where runs/NAME-1/slim.pt2 was made


def found_from(spec: str, model: Path) -> str:
    """The spec with its file or folder found: as it stands where that exists, else beside the model or above it.

    A relative path is that of the folder in which the model was trained, which nobody knows any more; the model often
    lies in it or below. Where nothing is found the spec stays as it is, to be refused by whoever opens it.

    Example: `npz:data/table.npz` of `~/project/runs/a/slim.pt2` is `npz:~/project/data/table.npz` from anywhere.
    """
    head, mark, query = spec.partition("?")
    kind, colon, place = head.partition(":")
    if not colon or not place or kind.endswith(".py") or place.startswith("~") or os.path.isabs(place):
        return spec
    if os.path.exists(place) or os.pardir in Path(place).parts:
        return spec
    folder = Path(os.path.abspath(model)).parent
    for candidate in (folder, *folder.parents[: _FOLDERS - 1]):
        if (candidate / place).exists():
            return f"{kind}:{candidate / place}{mark}{query}"
    return spec
