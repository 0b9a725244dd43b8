"""Which ids a file has rows for, where its vocabulary was cut: data that hold others are refused by input and id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgeprune.data import first_inputs
from edgeprune.errors import InputError
from edgeprune.export.description import FEATURES_FILE, FEATURES_FORMAT
from edgeprune.graph.rows import used_ids
from edgeprune.lines import shown
from edgeprune.measure.foreign import stated_in
from edgeprune.reading import parse_json, read_file
from edgeprune.records import DataSource, Vocabulary

_ENTRY = "edgeprune.vocabularies"


def stated_vocabularies(kept: Mapping[str, Vocabulary]) -> dict[str, str]:
    """What a file states of its vocabularies in its own metadata, where no features.json will stand beside it."""
    found = {name: {"size": one.size, "keep": list(one.keep), "unknown": one.unknown} for name, one in kept.items()}
    return {_ENTRY: json.dumps(found)} if found else {}


def check_ids(path: Path, data: DataSource) -> None:
    """Refuse a test split with ids that the file's network was cut of, and that nothing stands for.

    Raises:
        InputError: such an id; names the file, the input, the id and how large the vocabulary is.
    """
    for name, one in _vocabularies(path).items():
        names = [info.name for info in data.inputs]
        own = names[0] if len(names) == 1 else name  # a single one has no name of its own in a file
        if own not in names or one.unknown is not None:
            continue
        held = first_inputs(data.test, None)
        cut = sorted(set(used_ids(own, [held if isinstance(held, torch.Tensor) else held[own]])) - set(one.keep))
        if cut:
            more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
            raise InputError(
                f"{path}: input {own}: expected ids of the {len(one.keep):,} of {one.size:,} that the network keeps, "
                f"got {cut[0]}{more} in the test split of data {data.name}; compress --unknown-id says what stands "
                "for ids that are cut"
            )


def _vocabularies(path: Path) -> dict[str, Vocabulary]:
    """As the file states them, or features.json beside it; {} where neither does."""
    text, beside = stated_in(path).get(_ENTRY), path.parent / FEATURES_FILE
    if text is not None:
        return _read(parse_json(text, f"{path}: {_ENTRY}: expected an object"), str(path))
    if not beside.is_file():
        return {}
    document = parse_json(read_file(beside, "features").decode("utf-8", "replace"), f"{beside}: expected JSON")
    if not isinstance(document, dict) or document.get("format") != FEATURES_FORMAT or not _tells_of(document, path):
        return {}
    return _read(document.get("vocabularies", {}), str(beside))


def _tells_of(document: Mapping[str, Any], path: Path) -> bool:
    """Whether the file is one of those that are told of, in whatever format."""
    contracts = document.get("contracts")
    parts = contracts.values() if isinstance(contracts, dict) else ()
    stems = {Path(str(part.get("file"))).stem for part in parts if isinstance(part, dict)}
    return path.stem.removesuffix(".int8") in stems


def _read(value: Any, where: str) -> dict[str, Vocabulary]:
    expected = f"{where}: vocabularies: expected size and keep of every input"
    if not isinstance(value, dict):
        raise InputError(f"{expected}, got {shown(value)}")
    try:
        return {
            str(name): Vocabulary(int(one["size"]), tuple(map(int, one["keep"])), one.get("unknown"))
            for name, one in value.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{expected}, got {shown(value)}") from error
