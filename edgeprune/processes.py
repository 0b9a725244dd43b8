"""The processes that `torchrun` starts together, as their environment tells of them; torch is not needed for it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from edgeprune.errors import InputError

SHARED = ("train", "compress")  # commands that several processes share


def n_processes() -> int:
    """How many processes train together: 1 unless `torchrun` started this one."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def n_local_processes() -> int:
    """How many of them run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if n_processes() > 1 else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return _number("RANK", 0) if n_processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes files and speaks to the user."""
    return rank() == 0


def check_alone(command: str) -> None:
    """Raise InputError for a command that several processes would run side by side, into the same files."""
    if n_processes() > 1 and command not in SHARED:
        shared = " and ".join(SHARED)
        raise InputError(
            f"edgeprune {command}: expected one process, got {n_processes()}; torchrun is for edgeprune {shared}"
        )


def check_options_alone(given: Mapping[str, object]) -> None:
    """Raise InputError for an option of a shared command that is given, and is for one process."""
    for option in (name for name, value in given.items() if value):
        if n_processes() > 1:
            raise InputError(
                f"{option}: expected one process, got {n_processes()}; leave it out, or start without torchrun"
            )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
