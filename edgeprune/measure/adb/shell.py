"""One device by adb: scripts in its shell, files onto it.

A name never becomes part of a script but in quotes; what the device prints is never trusted.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.lines import one_line
from edgeprune.measure.adb.process import Said, asked

SECONDS = 30.0  # of anything that is neither a benchmark nor a large file
_SLOWEST = 2**20  # bytes a second of a connection
_INSTALL = "install Android's platform-tools (apt install adb, brew install android-platform-tools)"
_ADVICE = {
    "unauthorized": "allow USB debugging on its screen",
    "authorizing": "allow USB debugging on its screen",
    "offline": "plug it in again, or try `adb reconnect`",
    "no permissions": "this user may not open its USB port: see the udev rules of Android's documentation",
    "recovery": "start Android on it",
    "sideload": "start Android on it",
    "bootloader": "start Android on it",
}


@dataclass(frozen=True, slots=True)
class Adb:
    """A device that is ready, and the program that reaches it."""

    program: str
    serial: str

    @property
    def shown(self) -> str:
        """The device as messages call it."""
        return f"device {one_line(self.serial, 60)}"

    def shell(self, script: str, what: str, seconds: float = SECONDS) -> Said:
        """Run a script in the device's shell; `code` is the script's own, whatever the age of adb.

        Raises:
            InputError: the device went away, or it took too long.
        """
        mark = f"edgeprune-{secrets.token_hex(8)}:"
        said = asked([self.program, "-s", self.serial, "shell", f"{{ {script}\n}} 2>&1; echo {mark}$?"], what, seconds)
        text, found, code = said.text.rpartition(mark)
        if not found or not code.strip().isdecimal():
            raise InputError(f"{what}: {self.shown} went away{said.last_words}")
        return Said(int(code), text)

    def push(self, file: Path, place: str) -> None:
        """Copy a file to a place on the device.

        Raises:
            InputError: there is no space for it, or the device does not take it.
        """
        size = file.stat().st_size
        what = f"adb push of {one_line(file.name, 80)} to {self.shown}"
        command = [self.program, "-s", self.serial, "push", str(file.resolve()), place]
        said = asked(command, what, SECONDS + size / _SLOWEST)
        if said.code:
            space = "no space left for" if "no space left" in said.text.lower() else "it does not take"
            raise InputError(f"{what}: {space} its {size:,} bytes{said.last_words}")

    def has(self, place: str, test: str = "-f") -> bool:
        """Whether a place on the device passes a test of its shell."""
        return self.shell(f"[ {test} {shlex.quote(place)} ]", f"a look at {self.shown}").code == 0


def connected(serial: str | None) -> Adb:
    """The device to measure on: the one of this serial number, or the only one that is ready.

    Raises:
        InputError: adb is not installed, it sees no device, several, or one that is not ready.
    """
    program = _program()
    said = asked([program, "devices"], "adb devices", SECONDS)
    if said.code:
        raise InputError(f"adb devices: it ended with exit code {said.code}{said.last_words}")
    return Adb(program, _chosen(_states(said.text), serial or os.environ.get("ANDROID_SERIAL") or None))


def _program() -> str:
    homes = (os.environ.get(name) for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"))
    folders = [str(Path(home) / "platform-tools") for home in homes if home]
    found = shutil.which("adb") or shutil.which("adb", path=os.pathsep.join(folders) or os.devnull)
    if found is None:
        raise InputError(f"adb: expected the program on PATH or below $ANDROID_HOME, got none; {_INSTALL}")
    return found


def _states(text: str) -> dict[str, str]:
    """The states by serial number that `adb devices` lists, e.g. `{"1A2B": "device", "3C": "unauthorized"}`."""
    pairs = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {serial.strip(): state.strip() for serial, state in pairs}


def _chosen(states: dict[str, str], serial: str | None) -> str:
    shown = one_line(", ".join(states), 120)
    if not states:
        raise InputError(
            "adb devices: expected a device, got none; plug it in and switch USB debugging on in its developer options"
        )
    if serial is None:
        ready = [one for one, state in states.items() if state == "device"] or list(states)
        if len(ready) > 1:
            raise InputError(f"adb devices: expected one device, got {len(states)}: {shown}; name one with --serial")
        serial = ready[0]
    if serial not in states:
        raise InputError(f"--serial: expected one of {shown}, got {one_line(serial, 60)}")
    _check_ready(serial, states[serial])
    return serial


def _check_ready(serial: str, state: str) -> None:
    if state != "device":
        advice = next((f"; {text}" for start, text in _ADVICE.items() if state.startswith(start)), "")
        named = one_line(serial, 60)
        raise InputError(f"device {named}: expected it to be ready, got {one_line(state, 60)}{advice}")
