"""Which files are to be timed: those that are named, or those of a run's folder with the dense network first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.measure.adb.tool import Tool
from edgeprune.measure.adb.tools import SUFFIXES, TOOLS, tool_of
from edgeprune.reading import open_file

_BESIDE = ("preprocess", "full")  # contracts of the same network, of an export
_DENSE = "dense"
MOST_FILES = 64


@dataclass(frozen=True, slots=True)
class Network:
    """A file, what runs it, and the name that it is shown by."""

    path: Path
    tool: Tool
    shown: str
    size_bytes: int


def networks_of(places: Sequence[str]) -> list[Network]:
    """The networks in files and folders, the first of each runtime being the one that others are compared with.

    Args:
        places: files, or folders such as a run's; of a folder the dense network comes first: `dense.tflite` or what is
            in `dense/`, and `web/dense.onnx`, which export --web writes.

    Raises:
        InputError: a place has no network, or a file is none.
    """
    paths: list[tuple[Path, str]] = []
    for place in places:
        path = Path(place)
        paths += _within(path) if path.is_dir() else [(path, place if len(places) > 1 else path.name)]
    unique = {path.resolve(): (path, shown) for path, shown in reversed(paths)}
    found = [_network(*one) for one in reversed(unique.values())]
    if not 0 < len(found) <= MOST_FILES:
        raise InputError(f"{', '.join(places)}: expected 1 to {MOST_FILES} networks, got {len(found)}")
    return [network for tool in TOOLS for network in found if network.tool.runtime == tool.runtime]


def _within(folder: Path) -> list[tuple[Path, str]]:
    """The networks of a folder, by their path in it."""
    own = _files(folder)
    dense = [path for path in own if path.stem == _DENSE] + _files(folder / _DENSE) + _web(folder / "web")
    paths = [*dense, *(path for path in own if path.stem != _DENSE)]
    if not paths:
        raise InputError(
            f"{folder}: expected a network in {', '.join(SUFFIXES)}, got none; "
            f"edgeprune export {folder}/slim.pt2 --to litert,onnx writes them"
        )
    return [(path, path.relative_to(folder).as_posix()) for path in paths]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and path.stem not in _BESIDE]
    return sorted(files, key=lambda path: (path.suffix, len(path.name), path.name))


def _web(page: Path) -> list[Path]:
    return [path for path in _files(page) if path.stem == _DENSE]


def _network(path: Path, shown: str) -> Network:
    tool = tool_of(path)
    with open_file(path, "model"):
        return Network(path, tool, shown, path.stat().st_size)


def without_dense(networks: Sequence[Network]) -> list[str]:
    """A remark for each runtime whose first network is not called dense, though others are compared with it."""
    firsts: dict[str, list[Network]] = {}
    for network in networks:
        firsts.setdefault(network.tool.runtime, []).append(network)
    return [
        f"no dense network for {runtime}: ratios are over {first.shown}"
        for runtime, (first, *others) in firsts.items()
        if others and _DENSE not in (first.path.stem, first.path.parent.name)
    ]
