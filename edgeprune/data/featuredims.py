"""Which dim of an input its features lie along: `(steps, sensors)` and `(channels, steps)` look the same.

The data say so (by a name for each feature, or as the user states), else the network that takes them does, else nobody:
then mean and std go along dim 1, which is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.export import ExportedProgram

from edgeprune.data.inputs import size_along
from edgeprune.data.named import measured_inputs, shown_shape
from edgeprune.data.splits import measure
from edgeprune.graph.groups import analyze
from edgeprune.graph.inputs import feature_grids
from edgeprune.records import DataSource, InputInfo, Normalization

_MOST_CHANNELS = 4  # of an image, beside its height and width
_ALONE = "x"


def along_features(data: DataSource, program: ExportedProgram) -> DataSource:
    """The data measured along the dim by which a program tells the features of each input apart, where it tells.

    What the data say themselves goes before that, a normalisation that is stated as well.
    """
    if _is_settled(data) or not any(_is_untold(info) for info in _inputs(data)):
        return data
    told = told_dims(program)
    if not data.inputs:
        told = {_ALONE: next(iter(told.values()), None)}
    return _measured_along(data, {info.name: told.get(info.name) for info in _inputs(data) if _is_untold(info)})


def along_recorded(data: DataSource, recorded: Mapping[str, int]) -> DataSource:
    """The data measured along the dims by input (a lone one is `x`) that a network's file records its features along.

    A normalisation that is stated goes before that.
    """
    return data if _is_settled(data) else _measured_along(data, recorded)


def _measured_along(data: DataSource, dims: Mapping[str, int | None]) -> DataSource:
    before = _inputs(data)
    found = tuple(replace(info, feature_dim=dims.get(info.name, info.feature_dim)) for info in before)
    changed = replace(data, inputs=found) if data.inputs else replace(data, feature_dim=found[0].feature_dim)
    if all((one.feature_dim or 1) == (other.feature_dim or 1) for one, other in zip(found, before, strict=True)):
        return changed
    own = measured_inputs(data.train, found) if data.inputs else measure(data.train, found[0].feature_dim)
    return replace(changed, normalization=own, measured=own)


def told_dims(program: ExportedProgram) -> dict[str, int | None]:
    """By input the dim that a program tells features apart by; None where it tells none, or each element, apart."""
    return {name: grid.told_dim for name, grid in feature_grids(analyze(program, inputs=True).analysis).items()}


def placed(own: Normalization, info: InputInfo) -> Normalization:
    """Numbers of the user's along the dim of as many features: the known one, dim 1, or the last of `(steps, sensors)`.

    Where none has as many, they stay along their own, for `check_width` to refuse.
    """
    dims = [info.feature_dim, own.dim, 1, *([2] if len(info.shape) == 2 else [])]
    fitting = (dim for dim in dims if dim is not None and own.count == size_along(dim, info.shape))
    return own if own.count == 1 else replace(own, dim=next(fitting, own.dim))


def said_of_dims(data: DataSource, recorded: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Along which dims mean and std were measured, for the user to be told, where that could be another than dim 1.

    Args:
        data: what they were measured on.
        recorded: by input the file that records the dim of its features.
    """
    if _is_settled(data):
        return ()
    files = recorded or {}
    named = [(info, data.normalization.of(info.name) if data.inputs else data.normalization) for info in _inputs(data)]
    return tuple(
        _said(info, own, files.get(info.name))
        for info, own in named
        if own is not None and (info.name in files or (info.feature_dim != 1 and _is_open(info)))
    )


def _inputs(data: DataSource) -> tuple[InputInfo, ...]:
    """Those of the data by name; a lone x as one of them."""
    alone = InputInfo(_ALONE, tuple(data.input_shape), byte_scale=data.byte_scale, feature_dim=data.feature_dim)
    return data.inputs or (alone,)


def _is_settled(data: DataSource) -> bool:
    """Whether the normalisation is not what was measured, or is of images or sounds, whose channels come first."""
    return data.states_normalization or bool(data.preparation)


def _is_untold(info: InputInfo) -> bool:
    """Whether nothing says yet along which of several dims the features of an input lie."""
    return info.feature_dim is None and _is_open(info)


def _is_open(info: InputInfo) -> bool:
    """Whether features may lie along several dims of an input.

    Images have few channels, which come first; bytes of two dims are grey images.
    """
    if not info.is_float or len(info.shape) < 2:
        return False
    return info.byte_scale is None if len(info.shape) == 2 else (info.shape[0] or 0) > _MOST_CHANNELS


def _said(info: InputInfo, own: Normalization, file: str | None) -> str:
    """E.g. "mean and std of the data: one for each of the 6 along dim 2 of x (20, 6), its features"."""
    why = "its features" if file is None else f"its features as {file} says"
    if info.feature_dim is None:
        why = "as nothing says which dim has the features; npz:FILE?features=last takes the last"
    where = f"dim {own.dim} of {info.name} {shown_shape(info.shape)}"
    return f"mean and std of the data: one for each of the {own.count} along {where}, {why}"
