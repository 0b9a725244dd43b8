"""Rules for input features as a user writes them: by names, numbers and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.groups import analyze
from edgeprune.graph.inputs import feature_grids
from edgeprune.lines import one_line, shown
from edgeprune.reading import read_json
from edgeprune.records import ModelInfo
from edgeprune.settings import FeatureRules

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def feature_rules(
    always_keep: str | None, groups_file: str | None, names: Sequence[str], n_features: int
) -> FeatureRules:
    """The rules by feature numbers.

    Args:
        always_keep: features separated by commas, each a name, a number from 0 or a range such as `3-7`; a name with
            commas of its own goes before the names that these part it into.
        groups_file: a JSON file: a list of groups, or an object of them by name; a group is a list of names, numbers
            and ranges, or a text of them with commas between.
        names: those of all features, or none.
        n_features: how many features the input has; 0 of several inputs, where a number says none.

    Raises:
        InputError: a feature that does not exist, a feature in two groups, or a file that is no such list.
    """
    kept: tuple[int, ...] = ()
    if always_keep is not None:
        parts = _split(always_keep, names)
        if not parts:
            raise InputError("--always-keep: expected features separated by commas, got none")
        kept = tuple(
            sorted({index for part in parts for index in named_features(part, names, n_features, "--always-keep")})
        )
    if groups_file is None:
        return FeatureRules(kept)
    return FeatureRules(kept, *_read_groups(Path(groups_file), names, n_features))


@dataclass(frozen=True, slots=True)
class RuledFeatures:
    """The features that rules are for, one input after the other: how many, and their names, where they have some.

    `n_numbered` are those that a number says, 0 of several inputs; `may_go` says whether any of them can be removed.
    """

    n_features: int
    names: tuple[str, ...]
    n_numbered: int
    may_go: bool = True


def ruled_features(
    program: ExportedProgram, asked: str, by_input: Mapping[str, Sequence[str]], names: Sequence[str]
) -> RuledFeatures:
    """The features of every input that has some.

    Args:
        program: the network.
        asked: the options that rules are given by, for messages.
        by_input: the names of an input's features, where it has some.
        names: those of the features of the only input, where it has none of its own.

    Raises:
        InputError: the network has none.
    """
    grids = feature_grids(analyze(program, inputs=True).analysis)
    if not grids:
        raise InputError(f"{asked}: expected a network with inputs whose features can be removed, got none")
    may_go = any(bool((grid.units > 0).any()) for grid in grids.values())
    sizes = {name: len(grid) for name, grid in grids.items()}
    if len(sizes) > 1:
        return RuledFeatures(sum(sizes.values()), qualified(sizes, by_input), 0, may_go)
    [(name, n_features)] = sizes.items()
    own = tuple(by_input.get(name) or names)
    return RuledFeatures(n_features, own if len(own) == n_features else (), n_features, may_go)


def qualified(sizes: Mapping[str, int], names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What the features of several inputs are called in rules, one input after the other, e.g. "table.mass".

    Those without names go by their numbers, e.g. "series.3".

    Args:
        sizes: how many features each input has.
        names: those of all features of an input, where it has some.
    """
    own = {name: names.get(name, ()) for name in sizes}
    return tuple(
        f"{name}.{one}"
        for name, size in sizes.items()
        for one in (own[name] if len(own[name]) == size else range(size))
    )


def named_groups(rules: FeatureRules | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The groups that have names, as a model's info keeps them."""
    return tuple(zip(rules.names, rules.together, strict=True)) if rules is not None and rules.names else ()


def kept_groups(info: ModelInfo, keep: Sequence[int], names: Sequence[str]) -> dict[str, list[str]]:
    """What is kept of each group, e.g. `{"accelerometer": ["ax", "ay", "az"]}`.

    Args:
        info: the model's, with its groups.
        keep: the numbers of the kept features.
        names: theirs, `(len(keep),)`.
    """
    name_of = dict(zip(keep, names, strict=True))
    found = {group: [name_of[index] for index in members if index in name_of] for group, members in info.feature_groups}
    return {group: members for group, members in found.items() if members}


def _read_groups(
    path: Path, names: Sequence[str], n_features: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """The groups by feature numbers, and their names, where the file gives some."""
    document = read_json(path, "groups")
    named = _named_groups(document, path, names)
    found: list[tuple[int, ...]] = []
    owner: dict[int, str] = {}
    for name, members in named:
        where = f"{path}: {name}"
        group = tuple(sorted({index for member in members for index in _member(member, names, n_features, where)}))
        for index in group:
            if index in owner:
                raise InputError(f"{where}: expected features of no other group, got {index}, which {owner[index]} has")
            owner[index] = name
        found.append(group)
    return tuple(found), tuple(map(str, document)) if isinstance(document, dict) else ()


def _named_groups(document: object, path: Path, names: Sequence[str]) -> list[tuple[str, list[object]]]:
    if isinstance(document, dict):
        named = [(shown(name), members) for name, members in document.items()]
    elif isinstance(document, list):
        named = [(f"group {number}", members) for number, members in enumerate(document)]
    else:
        raise InputError(f"{path}: expected a list or an object of groups, got {type(document).__name__}")
    named = [(name, _split(members, names) if isinstance(members, str) else members) for name, members in named]
    for name, members in named:
        if not isinstance(members, list) or not members:
            raise InputError(f"{path}: {name}: expected a list of feature names or numbers, got {shown(members)}")
    return named


def _split(text: str, names: Sequence[str]) -> list[str]:
    """The features between commas; of a name that has commas itself, the longest that there is."""
    known, pieces, parts = set(names), text.split(","), []
    most = 1 + max((name.count(",") for name in names), default=0)
    while pieces:
        n = next((n for n in range(most, 1, -1) if ",".join(pieces[:n]).strip() in known), 1)
        parts.append(",".join(pieces[:n]).strip())
        pieces = pieces[n:]
    return [part for part in parts if part]


def _member(member: object, names: Sequence[str], n_features: int, where: str) -> Sequence[int]:
    if isinstance(member, bool) or not isinstance(member, (int, str)):
        raise InputError(f"{where}: expected feature names or numbers, got {shown(member)}")
    return named_features(str(member), names, n_features, where)


def named_features(text: str, names: Sequence[str], n_features: int, where: object) -> Sequence[int]:
    """The features that a name, a number or a range stands for; a name goes before a number.

    Raises:
        InputError: there is none; begins with `where` it is named.
    """
    if text in names:
        return [names.index(text)]
    match = _RANGE.fullmatch(text)
    if match is None or not n_features:
        some = ", ".join(map(shown, names[:8])) + ", ..." * (len(names) > 8)
        known = f"one of {some}" if names else "a number or a range"
        raise InputError(f"{where}: no input feature {shown(text)}: expected {known}")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < n_features:
        raise InputError(f"{where}: expected features from 0 to {n_features - 1}, got {one_line(text, 60)}")
    return range(first, last + 1)
