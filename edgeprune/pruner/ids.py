"""The vocabularies that a Pruner is asked for: which ids of token inputs stay, and what stands for the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.rows import checked_ids
from edgeprune.lines import shown
from edgeprune.pruning.vocabulary import vocabularies
from edgeprune.records import Vocabulary
from edgeprune.units import ranges


@dataclass(frozen=True, slots=True)
class KeptIds:
    """By input the ids that stay, ascending, and the id that stands for all that are cut, where one does."""

    keep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def asked(cls, kept: Any, unknown: Any) -> KeptIds:
        """`vocabularies` and `unknown_ids` of a Pruner, checked as far as that goes without its network.

        Raises:
            InputError: one is no mapping by the names of inputs, or holds no ids.
        """
        keep = {name: checked_ids(name, _listed(name, ids)) for name, ids in _by_input("vocabularies", kept).items()}
        stand_for = _by_input("unknown_ids", unknown)
        for name, value in stand_for.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"unknown_ids: {name}: expected a whole number from 0, got {shown(value)}")
        if stand_for and not keep:
            raise InputError(f"unknown_ids: expected vocabularies={{{next(iter(stand_for))!r}: ids}}, got none")
        return cls(keep, stand_for)

    def of(self, dense: Program) -> dict[str, Vocabulary]:
        """The same as the tables of a network have them.

        Raises:
            InputError: an input is no token input, or an id is none of its tables'.
        """
        return vocabularies(dense, self.keep, self.unknown) if self.keep else {}

    @property
    def texts(self) -> dict[str, list[str]]:
        """What was asked as `compress` is asked it: `{"vocabularies": ["ids=0-1,7"], "unknown_ids": ["ids=7"]}`."""
        texts = {
            "vocabularies": [f"{name}={','.join(ranges(ids))}" for name, ids in self.keep.items()],
            "unknown_ids": [f"{name}={one}" for name, one in self.unknown.items()],
        }
        return {option: said for option, said in texts.items() if said}


def _by_input(option: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{option}: expected a dict by the names of inputs, got {shown(value)}")
    return dict(value)


def _listed(name: str, ids: Any) -> Any:
    """Ids of a list, an array, a tensor, a set or a range as a list."""
    if isinstance(ids, Tensor):
        return ids.tolist()
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise InputError(f"vocabulary of {name!r}: expected a list of ids, got {shown(ids)}")
    return list(ids)
