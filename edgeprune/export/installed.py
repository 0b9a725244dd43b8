"""Whether the packages of a target are there, in versions that it was tried with; none of them is imported for that."""

from __future__ import annotations

import importlib.metadata
import re

from edgeprune.errors import InputError
from edgeprune.runtimes import Package, TargetEntry, target


def check_packages(name: str, shown: str) -> None:
    """Refuse early where a package of a target is missing, too old or too new.

    Args:
        name: of the target
        shown: as it is told of, e.g. `OpenVINO`.

    Raises:
        InputError: says what is wrong, and what installs it.
    """
    entry = target(name)
    for package in entry.packages:
        _check(package, entry, shown)


def _check(package: Package, entry: TargetEntry, shown: str) -> None:
    try:
        found = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        what = "" if package.name == entry.packages[0].name else f" ({package.name} is missing)"
        raise InputError(f"{shown} is not installed{what}: {entry.install}") from None
    if numbers(found) < numbers(package.least):
        raise InputError(f"{shown}: expected {package.expected}, got {found}, which is too old: {entry.install}")
    if numbers(found) >= numbers(package.below):
        raise InputError(f"{shown}: expected {package.expected}, got {found}, which is too new: {entry.install}")


def numbers(version: str) -> tuple[int, ...]:
    """What a version begins with, e.g. (2026, 4, 1) of `2026.4.1-22982-e213a147257`, without zeros at its end."""
    start = re.match(r"\d+(\.\d+)*", version)
    found = [int(part) for part in start[0].split(".")] if start else []
    while found and not found[-1]:
        found.pop()
    return tuple(found)
