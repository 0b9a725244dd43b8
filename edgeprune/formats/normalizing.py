"""How raw inputs become what a network takes: as the user says, else as its file says, else they go in as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgeprune.errors import InputError
from edgeprune.formats.pretrained import option_text, published_normalization, weights_normalization
from edgeprune.records import IDENTITY, DataSource, Model, Normalization
from edgeprune.units import parse_normalization

_MOST_SHOWN = 4
# Of images from 0 to 1: ImageNet's, and -1 to 1.
_USUAL = (Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), Normalization((0.5,), (0.5,)))


def with_normalization(
    model: Model, data: DataSource | None, asked: str | None, assume: Callable[[str], None]
) -> Model:
    """The model with the normalisation of its inputs in its info.

    What a file of edgeprune's records is kept unless the user asks for another. Weights that edgeprune did not train
    take the data as they are, which is told, for nobody knows what they saw; where the user's own DataSource says mean
    and std, those.

    Args:
        model: what was loaded.
        data: those that it is judged on; None leaves the normalisation open where nothing was asked.
        asked: `none`, `data`, `weights` or `mean=...;std=...`.
        assume: told what was assumed.

    Raises:
        InputError: a normalisation that cannot be had, or of another number of channels or columns.
    """
    recorded = model.info.normalization
    if asked is None:
        return model if data is None or recorded is not None else _assumed(model, data, assume)
    chosen = asked_normalization(asked, data, model.info.arch)
    check_inputs(chosen, model.info.input_shape, data)
    if recorded is not None and chosen != recorded:
        assume(f"--normalize {asked} for {option_text(_short(recorded))}, which the model's file records")
    return replace(model, info=replace(model.info, normalization=chosen))


def _assumed(model: Model, data: DataSource, assume: Callable[[str], None]) -> Model:
    """What the user's own DataSource states, else none."""
    if data.states_normalization:
        check_inputs(data.normalization, model.info.input_shape, data)
        assume(f"--normalize data ({_about(data.normalization)}, as {data.name} says)")
        return replace(model, info=replace(model.info, normalization=data.normalization))
    assume(_none(model, data))
    return replace(model, info=replace(model.info, normalization=IDENTITY))


def asked_normalization(asked: str, data: DataSource | None, arch: str | None) -> Normalization:
    """What `--normalize` stands for.

    Raises:
        InputError: `data` without data, `weights` of an architecture that says nothing of them, or another text.
    """
    given = parse_normalization(asked)
    if given is not None:
        return Normalization(*given)
    if asked == "none":
        return IDENTITY
    if asked == "weights":
        return weights_normalization(arch)
    if data is None:
        raise InputError("--normalize data: expected data to measure mean and std on, got none; give --data")
    return data.normalization


def other_normalizations(model: Model, data: DataSource) -> dict[str, Normalization]:
    """What could be tried where a network makes nothing of its inputs, by what the user would ask for."""
    if data.inputs:
        return _other_by_name(model, data)
    others = {"none": IDENTITY, "data": data.normalization}
    published = published_normalization(model.info.arch)
    if published is not None:
        others["weights"] = published
    if data.byte_scale is not None:
        as_bytes = Normalization((0.0,), (data.byte_scale,))  # e.g. 0..255, as an image file holds them
        others |= {f"'{option_text(one)}'": one for one in (as_bytes, *_USUAL)}
    width = model.info.input_shape[0]
    fitting = {name: value for name, value in others.items() if {len(value.mean), len(value.std)} <= {1, width}}
    return {name: value for name, value in fitting.items() if value != model.info.normalization}


def _other_by_name(model: Model, data: DataSource) -> dict[str, Normalization]:
    others = {"none": IDENTITY, "data": data.normalization}
    return {name: value for name, value in others.items() if value != model.info.normalization}


def check_inputs(normalization: Normalization, shape: tuple[int, ...], data: DataSource | None) -> None:
    """Raise InputError where it is not that of the data's inputs: one for each by name, or of the one's `shape`."""
    if normalization == IDENTITY:
        return
    if data is None or not data.inputs:
        check_width(normalization, shape)
    elif not normalization.inputs:
        names = ", ".join(info.name for info in data.inputs)
        raise InputError(f"--normalize: expected none or data for inputs by name ({names}), got one mean and std")


def check_width(normalization: Normalization, shape: tuple[int, ...]) -> None:
    """Raise InputError unless it has one mean and std, or one for each channel or column of `shape`."""
    counts = {len(normalization.mean), len(normalization.std)}
    if not shape:
        raise InputError("--normalize: expected none for a network with several inputs, got mean and std of one")
    if not counts <= {1, shape[0]}:
        raise InputError(f"--normalize: expected 1 or {shape[0]} means and stds for inputs {shape}, got {max(counts)}")


def _none(model: Model, data: DataSource) -> str:
    """E.g. "--normalize none (... as the data hold them, with mean=50 and std=4)"."""
    published = published_normalization(model.info.arch)
    other = "" if published is None else f"; weights would be {option_text(published)}"
    return (
        "--normalize none (edgeprune did not train these weights: inputs go in as the data hold them, "
        f"with {_about(data.normalization)}{other})"
    )


def _about(normalization: Normalization) -> str:
    return option_text(_short(normalization)).replace(";", " and ")


def _short(normalization: Normalization) -> Normalization:
    inputs = tuple((name, _short(own)) for name, own in normalization.inputs)
    return Normalization(normalization.mean[:_MOST_SHOWN], normalization.std[:_MOST_SHOWN], inputs)
