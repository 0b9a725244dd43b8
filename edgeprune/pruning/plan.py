"""The pruning plan: what is kept of every tensor, as plain numbers that can be read, diffed and replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError, PlanError
from edgeprune.lines import shown
from edgeprune.reading import parse_json, read_file
from edgeprune.records import InputFeatures, Vocabulary

FORMAT = "edgeprune-plan/1"
_FORMAT_OF_BLOCKS = "edgeprune-plan/2"  # a reader that knows nothing of blocks or splits must not cut without them
ATTENTION = ("heads", "head-dim")
_DIM = re.compile(r"\d{1,2}", re.ASCII)
_MAX_SIZE = 2**31  # of a dim
_MAX_DIMS = 64


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """How many units of a channel group stay; `exact` is False where the cut changes a normalisation's statistics."""

    name: str
    before: int
    after: int
    exact: bool


@dataclass(frozen=True, slots=True)
class PlannedBlock:
    """A residual block that goes as a whole, known by the tensors that go with it."""

    name: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedSplit:
    """A layer that becomes two, known by its weight, with so many channels in between."""

    weight: str
    rank: int


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """What a cut keeps.

    `tensors[name][dim]` lists the kept indices, ascending, of every parameter and buffer that is sliced; `name` is its
    name in the dense model's state dict. `inputs[name]` lists the kept input features. `source_sha256` is the digest
    of the program that the plan was made for. `attention` is what an attention loses, whole heads or the same channels
    of every head, as in `analyze`: the groups that the plan's couplings are checked by depend on it. `folded` tells
    that the model's constants are folded before the cut, see `fold`. `state` names inputs that an output feeds, as in
    `analyze`; what is kept of them is among `inputs`. `aligned` is what widths are multiples of where those that were
    preferred did not meet the budgets. `blocks` are taken out one after the other, before anything is sliced; `splits`
    come last, of layers as they are by then.
    """

    source_sha256: str
    tensors: Mapping[str, Mapping[int, tuple[int, ...]]]
    inputs: Mapping[str, InputFeatures] = field(default_factory=dict)
    groups: tuple[PlannedGroup, ...] = ()
    attention: str = "heads"
    folded: bool = False
    state: Mapping[str, str] = field(default_factory=dict)
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    aligned: int | None = None
    blocks: tuple[PlannedBlock, ...] = ()
    splits: tuple[PlannedSplit, ...] = ()

    @property
    def has_features(self) -> bool:
        """Whether input features go, other than units of a state."""
        return any(name not in self.state for name in self.inputs)

    @property
    def block_tensors(self) -> frozenset[str]:
        """The names of all tensors that go with blocks."""
        return frozenset(tensor for block in self.blocks for tensor in block.tensors)

    @property
    def exact(self) -> bool:
        """Whether the slim network equals the masked dense one without recomputed statistics."""
        return all(group.exact or group.before == group.after for group in self.groups)

    def to_json(self) -> str:
        """The plan as a JSON document."""
        document = {
            "format": _FORMAT_OF_BLOCKS if self.blocks or self.splits else FORMAT,
            "source_sha256": self.source_sha256,
            **({} if self.attention == "heads" else {"attention": self.attention}),
            **({"folded": True} if self.folded else {}),
            **({"state": dict(sorted(self.state.items()))} if self.state else {}),
            **({"vocabularies": _vocabularies_to_dict(self.vocabularies)} if self.vocabularies else {}),
            **({} if self.aligned is None else {"aligned": self.aligned}),
            **_blocks_to_dict(self.blocks),
            **_splits_to_dict(self.splits),
            "tensors": {
                name: {str(dim): list(kept) for dim, kept in sorted(dims.items())}
                for name, dims in sorted(self.tensors.items())
            },
            "inputs": {
                name: {"size": kept.size, "keep": list(kept.keep), "dim": kept.dim}
                for name, kept in sorted(self.inputs.items())
            },
            "groups": [
                {"name": g.name, "before": g.before, "after": g.after, "exact": g.exact} for g in self.groups
            ],
        }  # fmt: skip
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> PruningPlan:
        """Read a plan; every number is checked, whether it fits a model is for `cut` to say.

        Raises:
            PlanError: not JSON, another format, or indices that are unsorted, doubled, negative or missing.
        """
        document = _document(text)
        sha256 = document.get("source_sha256")
        if not isinstance(sha256, str):
            raise PlanError(f"the plan's source_sha256: expected a string, got {shown(sha256)}")
        attention = document.get("attention", "heads")
        if attention not in ATTENTION:
            raise PlanError(f"the plan's attention: expected {' or '.join(ATTENTION)}, got {shown(attention)}")
        folded = document.get("folded", False)
        if not isinstance(folded, bool):
            raise PlanError(f"the plan's folded: expected true or false, got {shown(folded)}")
        tensors = {name: _kept(name, dims) for name, dims in _table("tensors", document.get("tensors"))}
        inputs = {name: _features(name, entry) for name, entry in _table("inputs", document.get("inputs", {}))}
        groups = tuple(_group(entry) for entry in _list("groups", document.get("groups", [])))
        state = dict(_table("state", document.get("state", {})))
        if not all(isinstance(output, str) for output in state.values()):
            raise PlanError("the plan's state: expected the names of outputs")
        known = _table("vocabularies", document.get("vocabularies", {}))
        vocabularies = {name: _vocabulary(name, entry) for name, entry in known}
        aligned = _aligned(document.get("aligned"))
        blocks, splits = _structure(document)
        return cls(sha256, tensors, inputs, groups, attention, folded, state, vocabularies, aligned, blocks, splits)


def _structure(document: dict[str, Any]) -> tuple[tuple[PlannedBlock, ...], tuple[PlannedSplit, ...]]:
    """The blocks and splits of a plan, which its format says that there are."""
    blocks = tuple(_block(entry) for entry in _list("blocks", document.get("blocks", [])))
    splits = tuple(_split(entry) for entry in _list("splits", document.get("splits", [])))
    expected = _FORMAT_OF_BLOCKS if blocks or splits else FORMAT
    if document["format"] != expected:
        got = f"{document['format']!r} {'with' if blocks or splits else 'without'} any"
        what = "splits" if splits else "blocks"
        raise PlanError(f"the plan's {what}: expected them in {_FORMAT_OF_BLOCKS!r} alone, got {got}")
    if len({split.weight for split in splits}) < len(splits):
        raise PlanError("the plan's splits: expected every weight once")
    return blocks, splits


def _splits_to_dict(splits: tuple[PlannedSplit, ...]) -> dict[str, Any]:
    listed = [{"weight": split.weight, "rank": split.rank} for split in splits]
    return {"splits": listed} if listed else {}


def _split(entry: Any) -> PlannedSplit:
    fields = dict(_table("splits", entry))
    weight, rank = fields.get("weight"), fields.get("rank")
    if not isinstance(weight, str) or type(rank) is not int or not 1 <= rank < _MAX_SIZE:
        raise PlanError(f"the plan's splits: expected a weight's name and a rank from 1, got {shown(fields)}")
    return PlannedSplit(weight, rank)


def _blocks_to_dict(blocks: tuple[PlannedBlock, ...]) -> dict[str, Any]:
    listed = [{"name": block.name, "tensors": list(block.tensors)} for block in blocks]
    return {"blocks": listed} if listed else {}


def _block(entry: Any) -> PlannedBlock:
    fields = dict(_table("blocks", entry))
    name, tensors = fields.get("name"), fields.get("tensors")
    listed = tensors if isinstance(tensors, list) else []
    if not isinstance(name, str) or not listed or not all(isinstance(one, str) for one in listed):
        raise PlanError(f"the plan's blocks: expected a name and the names of tensors, got {shown(fields)}")
    return PlannedBlock(name, tuple(listed))


def _aligned(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise PlanError(f"the plan's aligned: expected a whole number from 1, got {shown(value)}")
    return value


def _document(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a plan of this format."""
    try:
        document = parse_json(text, "the plan: expected a JSON document")
    except InputError as error:
        raise PlanError(str(error)) from error
    if not isinstance(document, dict) or document.get("format") not in (FORMAT, _FORMAT_OF_BLOCKS):
        got = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise PlanError(f"the plan's format: expected {FORMAT!r}, got {shown(got)}")
    return document


def read_plan(path: Path) -> PruningPlan:
    """Read plan.json.

    Raises:
        PlanError: the file is missing or not a plan.
    """
    try:
        return PruningPlan.from_json(read_file(path, "plan"))
    except InputError as error:
        raise PlanError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _table(where: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise PlanError(f"the plan's {where}: expected an object, got {type(value).__name__}")
    return list(value.items())


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"the plan's {where}: expected a list, got {type(value).__name__}")
    return value


def _kept(name: str, dims: Any) -> dict[int, tuple[int, ...]]:
    """By dim, the indices that are kept of one tensor."""
    where = f"tensors[{shown(name)}]"
    return {_dim(name, dim): _indices(f"{where}[{shown(dim)}]", kept) for dim, kept in _table(where, dims)}


def _dim(name: str, dim: str) -> int:
    if not _DIM.fullmatch(dim):
        raise PlanError(f"the plan's tensors[{shown(name)}]: expected a dim as a number, got {shown(dim)}")
    return int(dim)


def _indices(where: str, value: Any) -> tuple[int, ...]:
    """Kept indices: whole numbers from 0, ascending, none twice, at least one."""
    indices = _list(where, value)
    if not indices:
        raise PlanError(f"the plan's {where} keeps nothing: expected at least one index")
    if not all(type(i) is int and 0 <= i < _MAX_SIZE for i in indices):
        raise PlanError(f"the plan's {where}: expected whole numbers from 0")
    for before, after in zip(indices, indices[1:], strict=False):
        if before >= after:
            raise PlanError(f"the plan's {where}: expected ascending indices, got {before} before {after}")
    return tuple(indices)


def _features(name: str, entry: Any) -> InputFeatures:
    fields = dict(_table(f"inputs[{shown(name)}]", entry))
    size, dim = fields.get("size"), fields.get("dim")
    if type(size) is not int or not 1 <= size < _MAX_SIZE:
        raise PlanError(f"the plan's inputs[{shown(name)}]['size']: expected a whole number from 1, got {shown(size)}")
    if dim is not None and (type(dim) is not int or not 1 <= dim <= _MAX_DIMS):
        raise PlanError(f"the plan's inputs[{shown(name)}]['dim']: expected a dim from 1 or null, got {shown(dim)}")
    keep = _indices(f"inputs[{shown(name)}]['keep']", fields.get("keep"))
    if keep[-1] >= size:
        raise PlanError(f"the plan's inputs[{shown(name)}]['keep']: expected indices below {size}, got {keep[-1]}")
    return InputFeatures(size, keep, dim)


def _vocabularies_to_dict(vocabularies: Mapping[str, Vocabulary]) -> dict[str, Any]:
    return {
        name: {"size": one.size, "keep": list(one.keep), "unknown": one.unknown, "tables": dict(one.tables)}
        for name, one in sorted(vocabularies.items())
    }


def _vocabulary(name: str, entry: Any) -> Vocabulary:
    where = f"vocabularies[{shown(name)}]"
    fields = dict(_table(where, entry))
    size, unknown = fields.get("size"), fields.get("unknown")
    if type(size) is not int or not 1 <= size < _MAX_SIZE:
        raise PlanError(f"the plan's {where}['size']: expected a whole number from 1, got {shown(size)}")
    keep = _indices(f"{where}['keep']", fields.get("keep"))
    if keep[-1] >= size:
        raise PlanError(f"the plan's {where}['keep']: expected ids below {size}, got {keep[-1]}")
    if unknown is not None and (type(unknown) is not int or unknown not in keep):
        raise PlanError(f"the plan's {where}['unknown']: expected an id that is kept or null, got {shown(unknown)}")
    tables = dict(_table(f"{where}['tables']", fields.get("tables")))
    if not all(type(dim) is int and 0 <= dim <= _MAX_DIMS for dim in tables.values()):
        raise PlanError(f"the plan's {where}['tables']: expected the dim of the rows of each tensor")
    return Vocabulary(size, keep, unknown, tables)


def _group(entry: Any) -> PlannedGroup:
    fields = dict(_table("groups", entry))
    kinds = {"name": str, "before": int, "after": int, "exact": bool}
    if not all(type(fields.get(name)) is kind for name, kind in kinds.items()):
        raise PlanError(f"the plan's groups: expected name, before, after and exact, got {shown(fields)}")
    return PlannedGroup(**{name: fields[name] for name in kinds})
