"""What a runtime's benchmark program is to be asked, and how what it prints is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgeprune.errors import InputError
from edgeprune.measure.adb.process import Said
from edgeprune.results.bench import BenchRound

NUMBER = r"([-+]?[0-9.]{1,40}(?:[eE][-+]?[0-9]{1,4})?)"


@dataclass(frozen=True, slots=True)
class Timing:
    """How a network is to be run: `delegate` is one of the tool's, `runs` the timed inferences of each round."""

    threads: int
    runs: int
    delegate: str


class Tool(Protocol):
    """The benchmark program of a runtime; `names` are those of its file, `option` is what names its place.

    `delegates` are what can run a network, the default first; `libraries` go along where they lie beside the program;
    `memory_is` says what its figure of memory counts.
    """

    @property
    def runtime(self) -> str:
        """E.g. `LiteRT`."""

    @property
    def names(self) -> tuple[str, ...]:
        """E.g. `("benchmark_model",)`."""

    @property
    def option(self) -> str:
        """E.g. `--benchmark-model`."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that it runs."""

    @property
    def delegates(self) -> Mapping[str, tuple[str, ...]]:
        """What can run a network, by name, with the arguments that ask for it."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Files that it loads."""

    @property
    def memory_is(self) -> str:
        """E.g. `the whole process`."""

    @property
    def get_it(self) -> str:
        """Where it comes from."""

    def arguments(self, model: str, timing: Timing) -> tuple[str, ...]:
        """What the program is given to time a model."""

    def read(self, said: Said) -> BenchRound:
        """What it printed; raises InputError with its last words where that cannot be read."""


def number(pattern: str, text: str) -> float | None:
    """The last number in a text after a pattern, if it is above zero and finite; else None."""
    found = re.findall(pattern + NUMBER, text)
    try:
        value = float(found[-1]) if found else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def unreadable(name: str, expected: str, said: Said) -> InputError:
    """The error for output without its figure."""
    return InputError(f"{name}: expected a line with {expected!r}, got none{said.last_words}")
