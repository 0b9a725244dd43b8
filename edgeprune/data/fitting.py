"""The inputs of a data set beside those of a network: what is missing, of another shape or type, or indexes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils.data import Dataset

from edgeprune.data.featuredims import along_features
from edgeprune.data.named import Column, NamedSplit, check_names, check_shape, with_inputs, without_name
from edgeprune.data.splits import TensorSplit, each_split
from edgeprune.errors import InputError
from edgeprune.graph.indices import UNBOUNDED, index_ranges
from edgeprune.graph.specs import InputSpec, input_specs
from edgeprune.records import IDENTITY, DataSource, InputInfo

_LARGEST = 2**24  # whole numbers below are all floats in float32


def with_inputs_of(data: DataSource, program: ExportedProgram) -> DataSource:
    """The data with their named inputs in the order and the types of a program's; others as they are.

    Bytes are read as 0 to 1 where floats are taken, and stay whole where whole numbers are. A lone `x` that a program
    takes as whole numbers becomes its input; a lone input of floats needs no name. Mean and std that are measured go
    along the features of the program, where the data do not say which dim those have.

    Raises:
        InputError: an input that is missing, that nothing takes, of another shape or type, or with numbers that index
            more rows than there are.
    """
    return along_features(with_specs(data, input_specs(program), limits_of(program)), program)


def with_specs(data: DataSource, specs: Sequence[InputSpec], limits: Mapping[str, tuple[int, int]]) -> DataSource:
    """The same for inputs as these say, which index below their `limits`; errors as `with_inputs_of`."""
    fitted = _by_name_of(data, specs, limits)
    is_plain = fitted is not data and len(specs) == 1 and fitted.inputs[0].is_float and fitted.inputs[0].shape
    return without_name(fitted) if is_plain else fitted


def _by_name_of(data: DataSource, specs: Sequence[InputSpec], limits: Mapping[str, tuple[int, int]]) -> DataSource:
    if not data.inputs:
        if len(specs) > 1:
            names = ", ".join(spec.name for spec in specs)
            raise InputError(f"data {data.name}: expected inputs by name ({names}), got one without a name")
        if specs[0].dtype.is_floating_point:
            return data
        data = by_name(data, specs[0].name)
    stated = [InputInfo(spec.name, spec.shape[1:], str(spec.dtype).removeprefix("torch.")) for spec in specs]
    return with_stated_inputs(data, stated, limits)


def with_stated_inputs(
    data: DataSource, stated: Sequence[InputInfo], limits: Mapping[str, tuple[int, int]] | None = None
) -> DataSource:
    """The data with their named inputs in the order and the types that are stated; errors as `with_inputs_of`."""
    check_names(stated, [info.name for info in data.inputs], f"data {data.name}")
    known = {info.name: info for info in data.inputs}
    infos = [_fitted(known[info.name], info, f"data {data.name}, input {info.name}") for info in stated]
    return with_inputs(data, infos, limits or {})


def limits_of(program: ExportedProgram) -> dict[str, tuple[int, int]]:
    """The least number and the one after the largest that each input of whole numbers may hold, where it indexes."""
    found = {}
    for name, numbers in index_ranges(program).items():
        if numbers.high.numel() and int(numbers.high.min()) < UNBOUNDED:
            found[name] = int(numbers.low.max()), int(numbers.high.min())
    return found


def _fitted(info: InputInfo, stated: InputInfo, where: str) -> InputInfo:
    check_shape(info.shape, stated, where)
    taken = replace(info, dtype=stated.dtype)
    if info.is_float and info.byte_scale is None and not taken.is_float:
        raise InputError(f"{where}: expected {taken.dtype}, got {info.dtype}: whole numbers are given as such")
    return replace(taken, dtype="float32") if taken.is_float else replace(taken, byte_scale=None)


def by_name(data: DataSource, name: str) -> DataSource:
    """A lone `x` of floats as the input of whole numbers that it stands for."""
    info = InputInfo(name, tuple(data.input_shape), "int64")
    whole = each_split(data, lambda split, name: _whole(split, info, f"data {data.name}, {name}"))
    return replace(whole, input_shape=(), inputs=(info,), normalization=IDENTITY, measured=IDENTITY)


def _whole(split: Dataset[Any], info: InputInfo, where: str) -> NamedSplit:
    wanted = f"{where}: expected whole numbers for input {info.name}, in an array of that name"
    if not isinstance(split, TensorSplit):
        raise InputError(f"{wanted}, or samples of a dict, got samples of float32")
    held = split.x
    if held.is_floating_point():
        if not bool((held == held.round()).all()) or bool((held.abs() >= _LARGEST).any()):
            raise InputError(f"{wanted}, got {held[(held != held.round()) | (held.abs() >= _LARGEST)][0]:g}")
        held = held.to(torch.int64)
    return NamedSplit([Column(held, info)], split.y)
