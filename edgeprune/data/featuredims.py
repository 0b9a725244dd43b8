"""Which dim of an input its features lie along: `(steps, sensors)` and `(channels, steps)` look the same.

The data say so (by a name for each feature, or as the user states), else the network that takes them does, else nobody:
then mean and std go along dim 1, which is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch.export import ExportedProgram

from edgeprune.data.inputs import size_along
from edgeprune.data.named import measured_inputs, shown_shape
from edgeprune.data.splits import measure
from edgeprune.errors import InputError
from edgeprune.graph.groups import analyze
from edgeprune.graph.inputs import FeatureGrid, feature_grids
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


def check_counts(data: DataSource, grids: Mapping[str, FeatureGrid], option: str) -> None:
    """Raise InputError where the data say that features lie along another dim than a network tells them apart by.

    So many of them are asked for by the `option`: those of the data cannot be removed, and steps are no sensors.
    """
    for info, grid in _counted(data, grids):
        if _says_another(info, grid):
            where = f"{info.name} {shown_shape(info.shape)}"
            raise InputError(
                f"{option}: expected a network that tells features along dim {info.feature_dim} of {where} apart, as "
                f"data {data.name} say, got one that tells the {len(grid)} along dim {grid.told_dim} apart; to count "
                "those, leave the names of features and ?features= out"
            )


def said_of_counts(data: DataSource, grids: Mapping[str, FeatureGrid], option: str) -> tuple[str, ...]:
    """What an `option` for input features counts, where they could lie along another dim."""
    return tuple(
        f"{option} counts {_what(info, grid)}"
        for info, grid in _counted(data, grids)
        if len(info.feature_names or data.feature_names) != len(grid) or _says_another(info, grid)
    )


def differs(data: DataSource, grids: Mapping[str, FeatureGrid]) -> bool:
    """Whether the data say that features lie along another dim than a network tells them apart by."""
    return any(_says_another(info, grid) for info, grid in _counted(data, grids))


def _what(info: InputInfo, grid: FeatureGrid) -> str:
    """E.g. "the 20 along dim 1 of x (20, 6), which the network tells apart"."""
    counted = f"the {len(grid)} single numbers" if grid.dim is None else f"the {len(grid)} along dim {grid.dim}"
    other = f", not those along dim {info.feature_dim} that the data say" if _says_another(info, grid) else ""
    return f"{counted} of {info.name} {shown_shape(info.shape)}, which the network tells apart{other}"


def _says_another(info: InputInfo, grid: FeatureGrid) -> bool:
    return info.feature_dim is not None and grid.told_dim not in (None, info.feature_dim)


def _counted(data: DataSource, grids: Mapping[str, FeatureGrid]) -> Iterator[tuple[InputInfo, FeatureGrid]]:
    """The inputs whose features may lie along several dims, and how a network counts them where it tells some apart."""
    known = grids if data.inputs else dict(zip([_ALONE], grids.values(), strict=False))
    for info in _inputs(data):
        grid = known.get(info.name)
        if grid is not None and _is_open(info) and (grid.units != grid.units[:1]).any():
            yield info, grid


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
