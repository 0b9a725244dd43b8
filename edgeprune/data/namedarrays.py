"""Data sets from arrays by the names of the network's inputs: `image`, `table`, `y`, or `image_train` to `y_test`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from edgeprune.data.featurenames import is_beside, with_names
from edgeprune.data.named import Column, NamedSplit, build_named, described_inputs, held_tensor, own_type, spanned
from edgeprune.data.splits import parts_of
from edgeprune.data.targets import found_targets
from edgeprune.errors import InputError
from edgeprune.records import DataSource, InputInfo
from edgeprune.tasks.wanted import WantedTargets

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)
class NamedPart:
    """The samples of a split: inputs `(n, ...)` by name, and targets, None where there are none."""

    inputs: Mapping[str, np.ndarray]
    y: np.ndarray | None = None


def is_named(names: Iterable[str], wanted: WantedTargets | None) -> bool:
    """Whether arrays of these names are inputs by name, rather than one `x`.

    They are where a network with several inputs wants them, or one whose input is among them; else where there is no
    `x`, but several inputs, or one beside `y`. An `x` beside which other arrays or `feature_names` stand is the one
    input of a network whatever that calls it: so it is read where no network is known yet.
    """
    names = list(names)
    stems = {_stem(name)[0] for name in names if not is_beside(name)}
    inputs = {stem for stem in stems if stem.lower() != "y"}
    asked = wanted.inputs if wanted is not None else ()
    if len(asked) > 1:
        return bool(inputs)
    if asked:
        alone = len(inputs) == 1 and "feature_names" not in map(str.lower, names)
        return asked[0] in inputs and (asked[0].lower() != "x" or alone)
    return bool(inputs) and "x" not in map(str.lower, inputs) and len(inputs | ({"y"} & stems)) > 1


def _stem(key: str) -> tuple[str, str]:
    """The name of an array and its split, "all" where it says none: `image_train` is `image` of train."""
    name, _, split = key.rpartition("_")
    return (name, split) if name and split in SPLITS else (key, "all")


def named_parts(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, NamedPart]:
    """Split name -> its samples, from arrays by input, and `y`; the split is "all" where no name says another.

    Raises:
        InputError: an input both whole and in splits, no input at all, or splits without the same inputs.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, split = _stem(key)
        found.setdefault(split, {})[name] = array
    _check_once(found, where)
    return {split: NamedPart({n: a for n, a in own.items() if n != "y"}, own.get("y")) for split, own in found.items()}


def _check_once(found: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise InputError where something stands both for all samples and for those of a split."""
    whole, others = found.get("all", {}), [split for split in found if split != "all"]
    doubled = next((f"{name} and {name}_{split}" for split in others for name in whole if name in found[split]), None)
    if doubled is not None:
        raise InputError(f"{where}: expected each input once, got {doubled}")
    if whole and others:
        expected = f"every array for all samples or for {', '.join(others)}"
        raise InputError(f"{where}: expected {expected}, got {', '.join(whole)} for all")


def from_named(
    name: str,
    parts: Mapping[str, NamedPart],
    classes: tuple[str, ...] = (),
    wanted: WantedTargets | None = None,
    beside: Mapping[str, Any] | None = None,
) -> DataSource:
    """A data set with named inputs from split name -> its arrays: "all", or "train" with "val" or "test" or both.

    Bytes are quantities from 0 to 1 and other whole numbers stay whole, until a network says what it takes. Where one
    of val and test is missing, the other is the test split and a tenth of train is held out. `beside` may hold the
    names of features, see `featurenames`.

    Raises:
        InputError: parts that do not make three splits, inputs of different names, lengths or shapes, targets that are
            not what is wanted, or what is no number.
    """
    _check_alike(name, parts)
    found = found_targets({split: part.y for split, part in parts.items()}, name, classes, wanted)
    held = {split: _held(part, found.values[split], f"{name}, {split}") for split, part in parts.items()}
    infos = with_names(_infos(name, held), beside or {}, name)
    splits = {
        split: NamedSplit([Column(tensors[info.name], info) for info in infos], found.values[split])
        for split, tensors in held.items()
    }
    return build_named(name, _three(splits, name), infos, found.classes, found.notes, found.info)


def _check_alike(name: str, parts: Mapping[str, NamedPart]) -> None:
    if not any(part.inputs for part in parts.values()):
        raise InputError(f"{name}: expected arrays by the names of the network's inputs, or x and y; got none of them")
    first, *others = parts
    for other in others:
        if set(parts[other].inputs) != set(parts[first].inputs):
            got = " and ".join(f"{', '.join(parts[part].inputs) or 'none'} in {part}" for part in (first, other))
            raise InputError(f"{name}: expected the same inputs in every split, got {got}")


def _held(part: NamedPart, y: Tensor | None, where: str) -> dict[str, Tensor]:
    """The inputs of a split as tensors of one length."""
    tensors = {key: _rows(array, f"{where}, input {key}") for key, array in part.inputs.items()}
    lengths = {key: len(x) for key, x in tensors.items()} | ({} if y is None else {"targets": len(y)})
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{count} of {key}" for key, count in lengths.items())
        raise InputError(f"{where}: expected as many samples of each input, got {got}")
    if 0 in lengths.values():
        raise InputError(f"{where}: expected at least one sample, got none")
    return tensors


def _rows(array: np.ndarray, where: str) -> Tensor:
    """One input of all samples."""
    x = held_tensor(array, None, where)
    if x.dim() == 0:
        raise InputError(f"{where}: expected (n, ...), one row a sample, got a single number")
    if 0 in x.shape[1:]:
        raise InputError(f"{where}: expected numbers, got none in shape {tuple(x.shape)}")
    return x


def _infos(name: str, held: Mapping[str, Mapping[str, Tensor]]) -> tuple[InputInfo, ...]:
    """What the inputs are, the same in every split."""
    first = next(iter(held))
    infos = []
    for info in described_inputs(held[first]):
        own = {split: tensors[info.name] for split, tensors in held.items()}
        for split, x in own.items():
            if tuple(x.shape[1:]) != info.shape or own_type(x) != info.dtype:
                got = f"{own_type(x)} {tuple(x.shape[1:])} in {split}"
                expected = f"{info.dtype} {info.shape} as in {first}"
                raise InputError(f"{name}, input {info.name}: expected {expected}, got {got}")
        infos.append(info if info.is_float else spanned(info, own.values()))
    return tuple(infos)


def _three(splits: Mapping[str, NamedSplit], name: str) -> list[Dataset[Any]]:
    if set(splits) == {"all"}:
        return _cut(splits["all"], (0.6, 0.2, 0.2))
    if "train" not in splits or len(splits) == 1:
        raise InputError(f"{name}: expected all samples together, or train with val or test, got {', '.join(splits)}")
    if len(splits) == 3:
        return [splits[split] for split in SPLITS]
    return [*_cut(splits["train"], (0.9, 0.1)), splits["test" if "test" in splits else "val"]]


def _cut(split: NamedSplit, fractions: tuple[float, ...]) -> list[Dataset[Any]]:
    return [split.part(index) for index in parts_of(len(split), split.y, fractions)]
