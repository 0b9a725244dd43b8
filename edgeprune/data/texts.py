"""Targets that come one by one as texts, a million of them in little memory: classes, numbers, or what is wanted."""

from __future__ import annotations

import math
import re
from array import array

import numpy as np

from edgeprune.data.limits import MAX_CLASSES
from edgeprune.data.targets import FoundTargets, found_targets
from edgeprune.errors import InputError
from edgeprune.lines import shown
from edgeprune.records import CLASSES
from edgeprune.tasks.wanted import WantedTargets

_WHOLE = re.compile(r"[+-]?\d{1,18}")


class Texts:
    """Texts as numbers of the different ones; as floats beside, while each of them is a number."""

    def __init__(self, wanted: WantedTargets, where: str) -> None:
        self._wanted, self._where = wanted, where
        self._known: dict[str, int] | None = None if wanted.kind == "values" else {}
        self._ids, self._numbers = array("i"), array("d")

    def append(self, text: str, where: str) -> None:
        """Take one more; `where` is whose it is, for messages."""
        number = _number(text)
        if len(self._numbers) == len(self):
            if number is not None:
                self._numbers.append(number)
            elif self._known is None:
                raise InputError(f"{where}: expected a number as target, got {shown(text)}")
        if self._known is None:
            return
        self._ids.append(self._known.setdefault(text, len(self._known)))
        if len(self._known) > MAX_CLASSES:
            if len(self._numbers) < len(self) or self._wanted.kind == "classes":
                raise InputError(f"{self._where}: expected at most {MAX_CLASSES:,} classes, got more different targets")
            self._known = None

    def __len__(self) -> int:
        return len(self._numbers) if self._known is None else len(self._ids)

    def found(self) -> FoundTargets:
        """Classes, sorted as numbers where all are whole ones, else as texts; values where they are decimals or wanted.

        Raises:
            InputError: not what is wanted.
        """
        if self._known is None or (self._wanted.kind in (None, "none") and self._are_decimals()):
            return found_targets({"all": np.array(self._numbers)}, self._where, (), WantedTargets("values"))
        if self._wanted.kind not in (None, "none", "classes"):
            raise InputError(f"{self._where}: expected {self._wanted.kind} as targets, got one text a sample")
        if self._are_decimals():
            raise InputError(f"{self._where}: expected whole numbers or texts as classes, got decimal numbers")
        names = list(self._known)
        if all(_WHOLE.fullmatch(name) for name in names):
            values = np.array([int(name) for name in names])[np.array(self._ids)]
            return found_targets({"all": values}, self._where, (), WantedTargets("classes"))
        order = sorted(range(len(names)), key=names.__getitem__)
        place = np.empty(len(names), np.int64)
        place[order] = np.arange(len(names))
        found = found_targets({"all": place[np.array(self._ids)]}, self._where, [names[i] for i in order])
        return FoundTargets(found.values, CLASSES, found.classes)

    def _are_decimals(self) -> bool:
        whole = self._known is not None and all(_WHOLE.fullmatch(name) for name in self._known)
        return len(self._numbers) == len(self) and not whole


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
