"""The vocabularies of a compress request: lists and files of ids, or those that the data use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from edgeprune.data import first_inputs
from edgeprune.errors import InputError
from edgeprune.graph.rows import used_ids
from edgeprune.graph.specs import input_specs
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.lines import shown
from edgeprune.pruning.vocabulary import vocabularies
from edgeprune.reading import read_file
from edgeprune.records import DataSource, Vocabulary
from edgeprune.requests import CompressRequest

USED = "used"
_IDS = re.compile(r"\s*\d{1,9}(-\d{1,9})?(\s*,\s*\d{1,9}(-\d{1,9})?)*\s*")
_MOST = 2**24  # ids of a range: more than any vocabulary has


def asked_vocabularies(
    request: CompressRequest, program: ExportedProgram, data: DataSource | None
) -> dict[str, Vocabulary]:
    """The ids that are asked to stay, by input; none where no input is named.

    Raises:
        InputError: an input, a list, a file or the data do not fit.
    """
    asked = _by_input("--input-features", request.vocabularies, "ids=used, ids=3,7-20 or ids=FILE")
    unknown = {
        name: _one_id(name, text) for name, text in _by_input("--unknown-id", request.unknown_ids, "ids=3").items()
    }
    if request.plan is not None and (asked or unknown):
        raise InputError(
            f"--input-features INPUT=IDS: expected no --plan, which says itself what stays, got {request.plan}"
        )
    if not asked and unknown:
        raise InputError(f"--unknown-id: expected --input-features {next(iter(unknown))}=..., got no list of ids")
    found = {name: _listed(name, text, program, data) for name, text in asked.items()}
    return vocabularies(program, found, unknown) if found else {}


def check_data(kept: Mapping[str, Vocabulary], program: ExportedProgram, data: DataSource | None) -> None:
    """Raise InputError where the data hold ids that would be cut, and nothing stands for them."""
    for name, split, got in _cut_ids(kept, program, data):
        raise InputError(
            f"--input-features {name}=...: expected every id of the data, got none of the {split} split's {got}; "
            f"--unknown-id {name}=ID says what stands for ids that are cut"
        )


def check_kept(program: ExportedProgram, data: DataSource | None) -> None:
    """Raise InputError where the data hold ids that a program was cut of, and nothing stands for them."""
    for name, split, got in _cut_ids(kept_vocabularies(program), program, data):
        where = f"data {data.name if data else ''}"
        raise InputError(
            f"{where}: expected ids of {name} that the network keeps, got {got} in the {split} split; compress the "
            f"dense network with --unknown-id {name}=ID, which says what stands for ids that are cut"
        )


def _cut_ids(
    kept: Mapping[str, Vocabulary], program: ExportedProgram, data: DataSource | None
) -> Iterator[tuple[str, str, str]]:
    """Inputs whose ids the data do not hold alone, with the split and the ids, e.g. "7 and 1 more"."""
    for name, one in kept.items() if data is not None else ():
        if one.unknown is not None:
            continue
        for split in ("train", "val", "test"):
            cut = sorted(set(used_ids(name, _arrays(name, program, data, (split,)))) - set(one.keep))
            if cut:
                yield name, split, f"{cut[0]}{f' and {len(cut) - 1} more' if len(cut) > 1 else ''}"


def _by_input(option: str, texts: Iterable[str] | None, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        if not name or not value:
            raise InputError(f"{option}: expected an input and its ids, such as {form}, got {shown(text)}")
        if name in found:
            raise InputError(f"{option}: expected every input once, got {shown(name)} twice")
        found[name] = value
    return found


def _one_id(name: str, text: str) -> int:
    if not (text.isdecimal() and len(text) < 10):
        raise InputError(f"--unknown-id {name}=...: expected a whole number from 0, got {shown(text)}")
    return int(text)


def _listed(name: str, text: str, program: ExportedProgram, data: DataSource | None) -> tuple[int, ...]:
    """The ids that a text stands for: those that the data use, numbers and ranges, or a file of them."""
    if text == USED:
        return used_ids(name, _arrays(name, program, data, ("train", "val")))
    if _IDS.fullmatch(text):
        return _numbers(text, f"--input-features {name}=...")
    content = read_file(Path(text), "ids").decode("utf-8", "replace")
    listed = ",".join(content.replace("[", " ").replace("]", " ").replace(",", " ").split())
    wrong = next((part for part in listed.split(",") if not _IDS.fullmatch(part)), None)
    if wrong is not None:
        raise InputError(f"{text}: expected whole numbers with spaces, commas or new lines between, got {shown(wrong)}")
    return _numbers(listed, text)


def _numbers(text: str, where: str) -> tuple[int, ...]:
    """`3,7-9` is 3, 7, 8, 9; an id that stands there twice is told by what takes the list."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= high - low < _MOST:
            raise InputError(f"{where}: expected a range that ascends, got {shown(part.strip())}")
        found.extend(range(low, high + 1))
    return tuple(found)


def _arrays(name: str, program: ExportedProgram, data: DataSource | None, splits: Iterable[str]) -> list[Any]:
    """What the data hold for an input, an array for each of these splits."""
    if data is None:
        raise InputError(
            f"--input-features {name}={USED}: expected data to find the ids in, got none; give --data, or a list of ids"
        )
    first = input_specs(program)[0].name
    names = [info.name for info in data.inputs] or [first]
    if name not in names:
        raise InputError(
            f"--input-features {name}={USED}: expected an input that the data hold, {' or '.join(names)}, got {name}"
        )
    held = [first_inputs(getattr(data, split), None) for split in splits]
    return [one[name] if isinstance(one, dict) else one for one in held]
