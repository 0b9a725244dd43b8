"""Where data lie: those on record in another folder than before, and the splits of a folder."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.errors import InputError

SPLITS = ("train", "val", "test")
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


def split_folders(base: Path) -> list[Path]:
    """Where the splits lie: the folder itself, or its train with val or test or both.

    Raises:
        InputError: train alone.
    """
    if not (base / "train").is_dir():
        return [base]
    present = [base / part for part in SPLITS if (base / part).is_dir()]
    if len(present) == 1:
        raise InputError(f"{base}: expected val or test beside train, got train alone")
    return present
