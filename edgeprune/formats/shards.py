"""Weights that are spread over several files, as Hugging Face's tools write large ones."""

from __future__ import annotations

import re
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.reading import parse_json

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w{1,12})")
_MOST = 1000


def shards_of(file: Path, data: bytes) -> list[Path]:
    """The files that hold the weights: the others of `model-00001-of-00003.safetensors`, those that an index names, or
    the file alone.

    Raises:
        InputError: a file is missing, or an index names one outside of its folder.
    """
    match = _SHARD.fullmatch(file.name)
    if match:
        count = int(match["count"])
        if not 1 <= count <= _MOST:
            raise InputError(f"expected 1 to {_MOST} parts, got {count} by the file's name")
        names = [f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)]
    elif data[:64].lstrip()[:1] == b"{" and b'"weight_map"' in data:
        names = _indexed(data)
    else:
        return [file]
    paths = [file.parent / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"expected all {len(paths)} parts of the weights beside it, got no {missing[0]}")
    return paths


def _indexed(data: bytes) -> list[str]:
    """The files of a `model.safetensors.index.json`."""
    expected = "expected an index of weights by file"
    document = parse_json(data, expected)
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict):
        raise InputError(f"{expected}, got no mapping weight_map")
    for name in weights.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"expected files of its own folder in an index of weights, got {shown(name, 80)}")
    names = sorted(set(weights.values()))
    if not 1 <= len(names) <= _MOST:
        raise InputError(f"expected 1 to {_MOST} files in an index of weights, got {len(names)}")
    return names
