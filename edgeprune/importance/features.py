"""Which input features stay where so many may: units of features, some of which only go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.importance.units import protected


def least_features(graph: ChannelGraph) -> int:
    """How few input features can be left: the smallest unit of each tensor's dim, and those that cannot go; 1 at least.

    Example: 1 where single features stand beside groups of three, whatever their scores are.
    """
    fixed, sizes = graph.features()
    return max(1, fixed + _count(sizes, protected(graph, [-own for own in sizes])))


def check_count(graph: ChannelGraph, n_features: int, what: str) -> None:
    """Raise InputError where a network cannot keep so many input features, whichever they are."""
    fixed, sizes = graph.features()
    least, most = least_features(graph), fixed + int(sum(own.sum() for own in sizes))
    if not least <= n_features <= most:
        raise InputError(f"{what}: expected to keep {least} to {most}, got {n_features}")


def kept_features(
    graph: ChannelGraph, worth: Sequence[np.ndarray], present: Sequence[np.ndarray], n_features: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Which units of input features stay, so that at most `n_features` do: the best first, each that still fits.

    Args:
        graph: the channel groups; those that are no input's are left alone.
        worth: of each unit `(n_units,)` for each group, of a feature in it.
        present: bool `(n_units,)` for each group, those that may stay.
        n_features: a number that `check_count` allows, those that cannot go among them.

    Returns:
        For each group bool `(n_units,)`: those that stay, and those of them without which a weight would have nothing
        to read.

    Example: of groups of 3 and 3 and three single features, 4 are one group and the best single one.
    """
    fixed, sizes = graph.features()
    last = _fitting_last(graph, worth, present, n_features - fixed)
    flat, ends = np.concatenate(sizes), np.cumsum([len(own) for own in sizes])[:-1]
    stays, ranks = np.concatenate(last), np.concatenate(worth)
    room = n_features - fixed - int(flat[stays].sum())
    waiting = np.flatnonzero(np.concatenate(present) & ~stays)
    waiting = waiting[np.argsort(-ranks[waiting], kind="stable")]
    while len(waiting):
        waiting = waiting[flat[waiting] <= room]
        count = int(np.searchsorted(np.cumsum(flat[waiting]), room, side="right"))  # the next ones, up to one too large
        stays[waiting[:count]] = True
        room -= int(flat[waiting[:count]].sum())
        waiting = waiting[count:]
    return np.split(stays, ends), last


def _fitting_last(
    graph: ChannelGraph, worth: Sequence[np.ndarray], present: Sequence[np.ndarray], room: int
) -> list[np.ndarray]:
    """The unit that each dim keeps: the best one; where these are too many features the best that fits."""
    _, sizes = graph.features()
    small = [-size for size in sizes]
    smallest = protected(graph, _ranks(worth, small, present))
    spare = room - _count(sizes, smallest)
    fits = [
        size <= size[own].min(initial=size.max(initial=0)) + spare for size, own in zip(sizes, present, strict=True)
    ]
    for first in (present, fits):
        last = protected(graph, _ranks(worth, first, present))
        if _count(sizes, last) <= room:
            return last
    return smallest


def _ranks(*keys: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each group `(n_units,)` the place of each unit, the highest last; a later key counts before earlier ones."""
    return [np.argsort(np.lexsort(own)) for own in zip(*keys, strict=True)]


def _count(sizes: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> int:
    return int(sum(size[own].sum() for size, own in zip(sizes, chosen, strict=True)))
