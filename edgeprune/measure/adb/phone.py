"""What a device says of itself: its model, its chip, its Android, and whether it is too warm to be measured."""

from __future__ import annotations

import re

from edgeprune.lines import one_line
from edgeprune.measure.adb.shell import Adb
from edgeprune.results.bench import Phone

_PROPERTIES = {
    "maker": ("ro.product.manufacturer",),
    "model": ("ro.product.model",),
    "chip": ("ro.soc.model", "ro.board.platform", "ro.hardware"),
    "android": ("ro.build.version.release",),
    "abis": ("ro.product.cpu.abilist", "ro.product.cpu.abi"),
}
# PowerManager.THERMAL_STATUS_*; from "light" on the system may slow the device down.
_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


def phone_of(adb: Adb) -> Phone:
    """The device as its properties describe it; what it does not say is empty."""
    names = [name for names in _PROPERTIES.values() for name in names]
    script = "; ".join(f'echo "{name}=$(getprop {name})"' for name in names)
    said = adb.shell(script, f"getprop of {adb.shown}").text
    pairs = (line.partition("=") for line in said.splitlines())
    values = {name.strip(): one_line(value, 80) for name, _, value in pairs}
    told = {key: next(filter(None, map(values.get, names)), "") for key, names in _PROPERTIES.items()}
    abis = tuple(filter(None, (abi.strip() for abi in told["abis"].split(","))))
    model = f"{told['maker']} {told['model']}".strip()
    return Phone(one_line(adb.serial, 80), model, told["chip"], told["android"], abis)


def thermal_status(adb: Adb) -> str | None:
    """How warm the device says that it is, e.g. `none` or `moderate`; None where it does not say."""
    said = adb.shell("dumpsys thermalservice", f"the thermal status of {adb.shown}").text
    found = re.search(r"Thermal Status: (\d+)", said)
    number = int(found[1][:4]) if found else len(_STATUS)
    return _STATUS[number] if number < len(_STATUS) else None
