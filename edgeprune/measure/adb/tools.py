"""The benchmark programs that there are, and where one is found: on this machine, or on the device already."""

from __future__ import annotations

import posixpath
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.lines import one_line
from edgeprune.measure.adb.benchmark_model import BenchmarkModel
from edgeprune.measure.adb.elf import abi_of, fits
from edgeprune.measure.adb.perf_test import PerfTest
from edgeprune.measure.adb.shell import Adb
from edgeprune.measure.adb.tool import Tool

TOOLS: tuple[Tool, ...] = (BenchmarkModel(), PerfTest())
TEMPORARY = "/data/local/tmp"  # where adb's user may write and run
SUFFIXES = tuple(suffix for tool in TOOLS for suffix in tool.suffixes)


@dataclass(frozen=True, slots=True)
class Program:
    """A tool's program: a file of this machine, to be pushed, or a place on the device."""

    tool: Tool
    host: Path | None
    place: str = ""

    @property
    def shown(self) -> str:
        """Its path, wherever it is."""
        return one_line(str(self.host) if self.host else self.place, 120)


def tool_of(path: Path) -> Tool:
    """The tool that runs a file, by its suffix; InputError where none does."""
    found = next((tool for tool in TOOLS if path.suffix.lower() in tool.suffixes), None)
    if found is None:
        raise InputError(
            f"{path}: expected a network with the suffix {', '.join(SUFFIXES)}, got {path.suffix or 'none'}"
        )
    return found


def program_of(tool: Tool, given: str | None, adb: Adb, abis: tuple[str, ...]) -> Program:
    """Where a tool's program is: as given, on PATH where it is for this device, or in the device's own folder.

    Raises:
        InputError: it is nowhere, or for another CPU.
    """
    if given is not None:
        return _given(tool, given, adb, abis)
    found = [Path(path) for name in tool.names if (path := shutil.which(name))]
    fitting = next((path for path in found if fits(abi_of(path), abis)), None)
    if fitting is not None:
        return Program(tool, fitting)
    for name in tool.names:
        place = posixpath.join(TEMPORARY, name)
        if adb.has(place):
            return _on_device(tool, place, adb)
    other = f" ({found[0]} is for {abi_of(found[0])}, the device for {', '.join(abis)})" if found else ""
    raise InputError(
        f"{tool.names[0]}: expected it on PATH, in {TEMPORARY} of {adb.shown} or by {tool.option} PATH, got none{other}"
        f"; nothing is downloaded: {tool.get_it}"
    )


def _given(tool: Tool, given: str, adb: Adb, abis: tuple[str, ...]) -> Program:
    host = Path(given)
    if host.is_file():
        abi = abi_of(host)
        if not fits(abi, abis):
            raise InputError(f"{tool.option} {given}: expected a program for {', '.join(abis)}, got one for {abi}")
        return Program(tool, host)
    if given.startswith("/") and adb.has(given):
        return _on_device(tool, given, adb)
    raise InputError(f"{tool.option} {given}: expected a program on this machine or on {adb.shown}, got nothing there")


def _on_device(tool: Tool, place: str, adb: Adb) -> Program:
    if not adb.has(place, "-x"):
        raise InputError(
            f"{place} on {adb.shown}: expected a program that can be run, got a file that cannot; "
            f"adb shell chmod 755 {shlex.quote(place)}"
        )
    return Program(tool, None, place)
