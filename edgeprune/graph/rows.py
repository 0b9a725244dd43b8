"""Which rows of the tables stay where ids of token inputs go: worked out on the labels of an analysis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import FIXED, Value
from edgeprune.graph.tokens import Lookup, Tokens
from edgeprune.lines import shown
from edgeprune.records import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The units of all rows that cut vocabularies look up, ascending, and which of them stay, `(n_units,)` each."""

    units: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)


def lookups_of(tokens: Tokens, vocabularies: Mapping[str, Vocabulary]) -> dict[str, list[Lookup]]:
    """For every vocabulary the lookups whose rows it says.

    Raises:
        InputError: an input is no token input, its ids are not those of the tables, or something else reads these.
    """
    found = {}
    for name, vocabulary in vocabularies.items():
        _check_vocabulary(tokens, name, vocabulary)
        found[name] = tokens.of(name)
        others = {other for lookup in found[name] for other in lookup.inputs} - vocabularies.keys()
        if others:
            raise InputError(f"{_what(name)}: input {min(others)!r} goes into the same lookup: give its ids too")
    every = [lookup for each in found.values() for lookup in each]
    for name, lookups in found.items():
        for lookup in lookups:
            _check_alone(tokens, name, lookup, every)
    return found


def _check_alone(tokens: Tokens, name: str, lookup: Lookup, every: Collection[Lookup]) -> None:
    """Raise InputError where a lookup's rows are read by something whose ids are not known."""
    reader = tokens.other_reader(lookup, every)
    if reader:
        raise InputError(f"{_what(name)}: the rows of {lookup.called} must stay, as the table is also read by {reader}")


def _check_vocabulary(tokens: Tokens, name: str, vocabulary: Vocabulary) -> None:
    if name not in tokens.inputs:
        known = ", ".join(tokens.inputs) or "there is none"
        raise InputError(
            f"{_what(name)}: expected an input whose ids look up the rows of a table ({known}), got {name!r}: "
            f"{tokens.why_not(name)}"
        )
    low, size = tokens.bounds(name)
    for ids in (vocabulary.keep, () if vocabulary.unknown is None else (vocabulary.unknown,)):
        wrong = next((number for number in ids if not low <= number < size), None)
        if wrong is not None:
            raise InputError(f"{_what(name)}: expected ids from {low} to {size - 1}, got {wrong}")
    if vocabulary.size != size:
        raise InputError(f"{_what(name)}: expected {size} ids in all, got {vocabulary.size}")


def settled_rows(analysis: Analysis, lookups: Mapping[str, list[Lookup]], asked: Mapping[str, Vocabulary]) -> Rows:
    """What stays, once inputs that share a table keep what any of them asks for.

    Args:
        analysis: solved, with the rows of these lookups free.
        lookups: as `lookups_of` gives them.
        asked: the vocabularies.

    Raises:
        InputError: rows cannot go, or only together with rows that are to stay.
    """
    labels = {lookup: _row_labels(analysis, lookup) for each in lookups.values() for lookup in each}
    keep, units = _together(lookups, labels, asked)
    for lookup, rows in labels.items():
        _check_rows(analysis, lookup, rows, np.isin(rows, units), keep)
    every = np.unique(np.concatenate(list(labels.values())))
    vocabularies = {
        name: replace(one, keep=tuple(sorted(keep[name])), tables=_tables(analysis, lookups[name], labels))
        for name, one in asked.items()
        if len(keep[name]) < one.size
    }
    return Rows(every, np.isin(every, units), vocabularies)


def _together(
    lookups: Mapping[str, list[Lookup]], labels: Mapping[Lookup, np.ndarray], asked: Mapping[str, Vocabulary]
) -> tuple[dict[str, set[int]], np.ndarray]:
    """The ids that every input keeps, those of inputs with a table in common too, and the units of their rows."""
    keep = {name: set(vocabulary.keep) for name, vocabulary in asked.items()}
    while True:
        units = np.unique(np.concatenate([_units_of(lookup, rows, keep) for lookup, rows in labels.items()]))
        wider = {name: _looked_up(lookups[name], labels, asked[name].size, units) for name in keep}
        if wider == keep:
            return keep, units
        keep = wider


def _units_of(lookup: Lookup, rows: np.ndarray, keep: Mapping[str, set[int]]) -> np.ndarray:
    """The units that a lookup finds by the ids that are kept, locked rows not among them."""
    found = rows[[number + lookup.shift for name in lookup.inputs for number in keep[name]]]
    return found[found != FIXED]


def _row_labels(analysis: Analysis, lookup: Lookup) -> np.ndarray:
    """The unit of every row of a lookup's table, 0 where it is locked, `(n_rows,)`."""
    call = analysis.calls[lookup.node]
    value = call.args.get("weight", call.args.get("self"))
    assert isinstance(value, Value)
    found = np.zeros(lookup.n_rows, dtype=np.int64)
    for layer in value.on(0):
        if layer.dims == (0,):
            found = layer.labels.reshape(lookup.n_rows, -1)[:, 0].numpy()
    return found


def _looked_up(
    lookups: Iterable[Lookup], labels: Mapping[Lookup, np.ndarray], size: int, units: np.ndarray
) -> set[int]:
    """The ids of an input of which some row is among these units."""
    found: set[int] = set()
    for lookup in lookups:
        rows = np.flatnonzero(np.isin(labels[lookup], units)) - lookup.shift
        found.update(rows[(rows >= 0) & (rows < size)].tolist())
    return found


def _check_rows(
    analysis: Analysis, lookup: Lookup, rows: np.ndarray, kept: np.ndarray, keep: Mapping[str, set[int]]
) -> None:
    """Every id that is kept has a row, in the order of the ids, and no other row stays."""
    name = lookup.inputs[0]
    if (rows == 0).any() and len(keep[name]) < len(rows):
        raise InputError(f"{_what(name)}: the rows of {lookup.called} must stay: {_lock(analysis, lookup)}")
    for name in lookup.inputs:
        wanted = np.sort([number + lookup.shift for number in keep[name]])
        if not np.array_equal(np.flatnonzero(kept), wanted):
            raise InputError(
                f"{_what(name)}: the rows of {lookup.called} are looked up by ids that stand for other rows elsewhere, "
                "so that one number cannot stand for both"
            )


def _lock(analysis: Analysis, lookup: Lookup) -> str:
    """Why rows cannot go."""
    solver = analysis.solver
    for source in analysis.sources.values():
        why = solver.reason[solver.component[source.ids]]
        if source.dim == 0 and source.name in lookup.tables and (why >= 0).any():
            return solver.reasons[int(why.max())].message
    return "they do not stand by themselves"


def _tables(analysis: Analysis, lookups: Iterable[Lookup], labels: Mapping[Lookup, np.ndarray]) -> dict[str, int]:
    """The parameters and buffers that hold these rows, under each of their names, and along which dim."""
    units = np.unique(np.concatenate([labels[lookup] for lookup in lookups]))
    found: dict[str, int] = {}
    for (kind, name, dim), source in analysis.sources.items():
        if kind == "tensor" and dim is not None and np.isin(analysis.solver.canonical[source.ids], units).any():
            found.update(dict.fromkeys(analysis.tensors.aliases(name) or [name], dim))
    return found


def _what(name: str) -> str:
    return f"vocabulary of {name!r}"


def checked_ids(name: str, ids: Any) -> tuple[int, ...]:
    """A list of ids that are to be kept, ascending.

    Raises:
        InputError: there is none, one is no whole number from 0, or there twice.
    """
    numbers, counts = np.unique(_whole_numbers(name, ids), return_counts=True)
    if int(numbers[0]) < 0:
        raise InputError(f"{_what(name)}: expected ids from 0, got {numbers[0]}")
    if int(counts.max()) > 1:
        raise InputError(f"{_what(name)}: expected every id once, got {numbers[counts.argmax()]} {counts.max()} times")
    return tuple(numbers.tolist())


def _whole_numbers(name: str, ids: Any) -> np.ndarray:
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError) as error:
        raise InputError(f"{_what(name)}: expected a list of ids, got a {type(ids).__name__}") from error
    if array.ndim != 1 or not array.size:
        got = "none" if array.ndim == 1 else f"an array of shape {array.shape}"
        raise InputError(f"{_what(name)}: expected a list of at least one id, got {got}")
    if array.dtype.kind not in "iu":
        wrong = next((one for one in array.tolist() if not isinstance(one, int)), array.tolist()[0])
        raise InputError(f"{_what(name)}: expected whole numbers, got {shown(wrong)}")
    return array


def used_ids(name: str, arrays: Iterable[Any]) -> tuple[int, ...]:
    """The ids that stand in arrays of any shape, ascending; whole numbers in floats count.

    Raises:
        InputError: there is none, or one is no whole number from 0.
    """
    found = np.zeros(0, dtype=np.int64)
    for array in map(np.asarray, arrays):
        numbers = array.ravel()
        if numbers.dtype.kind not in "iuf" or not (numbers == np.trunc(numbers)).all():
            raise InputError(f"{_what(name)}: expected data of whole numbers, got {numbers.dtype}")
        found = np.union1d(found, numbers.astype(np.int64))
    return checked_ids(name, found)
