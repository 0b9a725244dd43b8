"""Layers that are held, by name: whole, or to a share of their units. The search decides the others' widths."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph, ChannelGroup, LockedUnits

LEAVE, RATIOS = "leave", "layer_ratios"


@dataclass(frozen=True, slots=True)
class Held:
    """The numbers of the groups that are held whole, and the shares of their units that others keep."""

    whole: frozenset[int] = frozenset()
    shares: Mapping[int, float] = field(default_factory=dict)

    @property
    def groups(self) -> frozenset[int]:
        """All that nothing else decides on."""
        return self.whole | self.shares.keys()


def held_layers(
    graph: ChannelGraph, leave: Collection[str], ratios: Mapping[str, float], called: tuple[str, str] = (LEAVE, RATIOS)
) -> Held:
    """The groups that names stand for: of a layer, of a group, or patterns of them such as `stages.0.*`.

    Args:
        graph: the channel groups.
        leave: what stays whole.
        ratios: what keeps a share of its units, in (0, 1].
        called: what a user calls both.

    Raises:
        InputError: nothing is called so, or it is locked, or a share is out of range, or one group is held twice.
    """
    whole = frozenset(g for name in leave for g in _found(graph, name, called[0]))
    shares: dict[int, float] = {}
    for name, ratio in ratios.items():
        _check_ratio(ratio, f"{called[1]}: {name}")
        for g in _found(graph, name, called[1]):
            group = graph.groups[g]
            if group.is_input or group.given is not None:
                raise InputError(f"{called[1]}: expected a layer, got {name!r}, which stands for {group.name}")
            if g in whole or shares.get(g, ratio) != ratio:
                got = "the whole of it" if g in whole else f"{shares[g]:g}"
                raise InputError(
                    f"{called[1]}: {name!r}: expected one share for each group of coupled channels, got {ratio:g} and "
                    f"{got} for {group.name}"
                )
            shares[g] = float(ratio)
    return Held(whole, shares)


def unit_counts(graph: ChannelGraph, names: Collection[str]) -> dict[str, int]:
    """How many units there are of all that each name stands for."""
    return {name: sum(graph.groups[g].n_units for g in _matching(graph, name)) for name in names}


def own_ratios(ratios: Mapping[str, float], dense: Mapping[str, int], graph: ChannelGraph) -> dict[str, float]:
    """The shares of a smaller network's units that come to these of the dense network's; at most all of them.

    Args:
        ratios: shares of the dense network's units, by name.
        dense: how many those are, by name.
        graph: the smaller network's channel groups.
    """
    left = unit_counts(graph, ratios)
    return {name: min(1.0, ratio * dense[name] / max(1, left[name])) for name, ratio in ratios.items()}


def parse_ratios(texts: Collection[str], where: str) -> dict[str, float]:
    """The shares by name, of texts such as `layer1.*=0.5`.

    Raises:
        InputError: a text has another form, a share is out of range, or a name comes twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, share = text.rpartition("=")
        try:
            ratio = float(share)
        except ValueError:
            ratio = math.nan
        if not equals or not name or math.isnan(ratio):
            raise InputError(f"{where}: expected NAME=SHARE, such as layer1.*=0.5, got {text!r}")
        _check_ratio(ratio, f"{where}: {name}")
        if name in found:
            raise InputError(f"{where}: expected each name once, got {name} twice")
        found[name] = ratio
    return found


def _check_ratio(ratio: Any, where: str) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
        raise InputError(f"{where}: expected a share in (0, 1], got {ratio!r}")


def _found(graph: ChannelGraph, name: str, called: str) -> list[int]:
    """The groups that a name stands for, at least one."""
    mine = _matching(graph, name)
    if mine:
        return mine
    locks = [lock for lock in graph.locked if _fits(name, {lock.name, _layer(lock)})]
    lock = min(locks, key=lambda lock: lock.dim, default=None)  # what it puts out, before what it reads
    if lock is not None:
        where = f", at {lock.where}" if lock.where else ""
        raise InputError(
            f"{called}: expected a layer whose channels may go, got {name!r}, which is locked: {lock.reason}{where}"
        )
    known = list(dict.fromkeys(each for group in graph.groups for each in _names(group)))
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    some = ", ".join(group.name for group in graph.groups[:4]) or "none"
    raise InputError(f"{called}: expected the name of a layer or a group ({some}, ...), got {name!r}{hint}")


def _matching(graph: ChannelGraph, name: str) -> list[int]:
    """The groups that a name stands for; of a table its columns, where which of its rows stay is said already."""
    mine = [g for g, group in enumerate(graph.groups) if _fits(name, set(_names(group)))]
    return [g for g in mine if graph.groups[g].given is None] or mine


def _fits(name: str, names: Collection[str]) -> bool:
    """Whether it is one of these names, or a pattern of one."""
    return name in names or any(fnmatchcase(each, name) for each in names)


def _names(group: ChannelGroup) -> Iterator[str]:
    yield group.name
    yield from group.layers


def _layer(lock: LockedUnits) -> str:
    return lock.name.rpartition(".")[0] or lock.name
