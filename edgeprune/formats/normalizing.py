"""How raw inputs become what a network takes: as the user says, else as its file says, else they go in as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from edgeprune.data.featuredims import placed, said_of_dims, told_dims
from edgeprune.data.inputs import size_along
from edgeprune.errors import InputError
from edgeprune.formats.pretrained import (
    option_text,
    published_normalization,
    published_scaling,
    weights_normalization,
)
from edgeprune.graph.specs import input_specs
from edgeprune.records import IDENTITY, DataSource, InputInfo, Model, Normalization
from edgeprune.units import parse_normalization, split_normalization

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
        asked: `none`, `data`, `weights` or `mean=...;std=...`, or one of them for each of some inputs by name.
        assume: told what was assumed.

    Raises:
        InputError: a normalisation that cannot be had, or of another number of channels or columns.
    """
    recorded = model.info.normalization
    if asked is None:
        return model if data is None or recorded is not None else _assumed(model, data, assume)
    rest = recorded or (data.normalization if data is not None and data.states_normalization else None)
    inputs = _inputs_of(model, data)
    chosen = asked_normalization(asked, data, model.info.arch, inputs, rest or IDENTITY)
    check_inputs(chosen, model.info.input_shape, data)
    if data is not None and "data" in (asked, *split_normalization(asked).values()):
        for text in said_of_dims(data):
            assume(text)
    for text in _instead(asked, chosen, recorded) if rest is not None else _as_held(asked, inputs):
        assume(text)
    return replace(model, info=replace(model.info, normalization=chosen))


def _instead(asked: str, chosen: Normalization, recorded: Normalization | None) -> tuple[str, ...]:
    """What is asked in the place of what the file says."""
    if recorded is None or chosen == recorded:
        return ()
    return (f"--normalize {asked} for {option_text(_short(recorded))}, which the model's file records",)


def _as_held(asked: str, inputs: Sequence[InputInfo]) -> tuple[str, ...]:
    """What is assumed of the inputs of floats that are not named where others are."""
    parts = split_normalization(asked)
    names = [info.name for info in inputs if parts and info.is_float and info.name not in parts]
    return tuple(f"--normalize {name}:none (nothing was asked of it: it goes in as the data hold it)" for name in names)


def _assumed(model: Model, data: DataSource, assume: Callable[[str], None]) -> Model:
    """What the user's own DataSource states, else none."""
    if data.states_normalization:
        check_inputs(data.normalization, model.info.input_shape, data)
        assume(f"--normalize data ({_about(data.normalization)}, as {data.name} says)")
        return replace(model, info=replace(model.info, normalization=data.normalization))
    assume(_none(model, data))
    for text in _scaled_otherwise(model, data):
        assume(text)
    return replace(model, info=replace(model.info, normalization=IDENTITY))


def asked_normalization(
    asked: str,
    data: DataSource | None,
    arch: str | None,
    inputs: Sequence[InputInfo] = (),
    rest: Normalization = IDENTITY,
) -> Normalization:
    """What `--normalize` stands for.

    Args:
        asked: as for `with_normalization`.
        data: whose mean and std are meant by `data`.
        arch: whose weights are meant by `weights`.
        inputs: those of the network, or of the data, by name.
        rest: that of the inputs which are not named where others are.

    Raises:
        InputError: `data` without data, `weights` of an architecture that says nothing of them, an input that is not
            there or holds no floats, another number of channels or columns, or another text.
    """
    parts = split_normalization(asked)
    if not parts:
        return _meant(asked, data, arch, _alone(data, inputs))
    known = {info.name: info for info in inputs}
    for name in parts:
        _check_scaled(name, known)
    if len(inputs) == 1 and (data is None or not data.inputs):
        return _meant(parts[inputs[0].name], data, arch, _alone(data, inputs))
    found = {name: _meant(how, data, arch, known[name], name) for name, how in parts.items()}
    for name, own in found.items():
        check_width(own, known[name].shape, f"--normalize {name}")
    return _by_name(known, found, rest)


def _alone(data: DataSource | None, inputs: Sequence[InputInfo]) -> InputInfo | None:
    """The only input, as the data hold it, else as the network takes it; None of several."""
    if data is not None and not data.inputs:
        return InputInfo("x", tuple(data.input_shape), feature_dim=data.feature_dim)
    return inputs[0] if len(inputs) == 1 else None


def _by_name(names: Iterable[str], found: Mapping[str, Normalization], rest: Normalization) -> Normalization:
    """What was found of inputs by name, and of the others what holds for them; what goes in as it is has none."""
    every = {name: found.get(name) or rest.of(name) or IDENTITY for name in names}
    scaled = tuple((name, own) for name, own in every.items() if own != IDENTITY)
    return Normalization(IDENTITY.mean, IDENTITY.std, scaled)


def _meant(
    asked: str, data: DataSource | None, arch: str | None, taken: InputInfo | None, name: str | None = None
) -> Normalization:
    """What is asked of all inputs, or of one by name, as it is `taken`."""
    option = "--normalize" if name is None else f"--normalize {name}"
    given = parse_normalization(asked, option)
    if given is not None:
        own = Normalization(*given)
        return own if taken is None else placed(own, taken)
    if asked == "none":
        return IDENTITY
    if asked == "weights":
        return weights_normalization(arch)
    if data is None:
        raise InputError(f"{option}: expected data to measure mean and std on, got none for data; give --data")
    return data.normalization if name is None else data.normalization.of(name) or IDENTITY


def _check_scaled(name: str, known: Mapping[str, InputInfo]) -> None:
    """Raise InputError unless it is an input of floats."""
    if not known:
        raise InputError(f"--normalize: expected one mean and std, as the network has one input, got that of {name}")
    if name not in known:
        raise InputError(f"--normalize {name}: expected an input of the network ({', '.join(known)}), got {name}")
    if not known[name].is_float:
        raise InputError(
            f"--normalize {name}: expected an input of floats, got {known[name].dtype}, whose numbers go in as they are"
        )


def _inputs_of(model: Model, data: DataSource | None) -> tuple[InputInfo, ...]:
    """Those of the data by name, else of the network."""
    if data is not None and data.inputs:
        return data.inputs
    specs, told = input_specs(model.program), told_dims(model.program) if data is None else {}
    return tuple(
        InputInfo(spec.name, spec.shape[1:], str(spec.dtype).removeprefix("torch."), feature_dim=told.get(spec.name))
        for spec in specs
    )


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
    shape = model.info.input_shape
    fitting = {name: value for name, value in others.items() if value.count in (1, size_along(value.dim, shape))}
    return {name: value for name, value in fitting.items() if value != model.info.normalization}


def _other_by_name(model: Model, data: DataSource) -> dict[str, Normalization]:
    others = {"none": IDENTITY, "data": data.normalization}
    return {name: value for name, value in others.items() if value != model.info.normalization}


def check_inputs(normalization: Normalization, shape: tuple[int, ...], data: DataSource | None) -> None:
    """Raise InputError where it is not that of the data's inputs: one for each by name, or of the one's `shape`."""
    if normalization == IDENTITY:
        return
    if data is None or not data.inputs:
        if not shape and not normalization.inputs:
            raise InputError("--normalize: expected NAME:HOW for each of several inputs, got one mean and std")
        if not normalization.inputs:
            check_width(normalization, shape)
    elif not normalization.inputs:
        names = ", ".join(info.name for info in data.inputs)
        raise InputError(
            f"--normalize: expected none or data for inputs by name ({names}), or NAME:HOW for each, got one mean and "
            "std"
        )


def check_width(normalization: Normalization, shape: tuple[int | None, ...], option: str = "--normalize") -> None:
    """Raise InputError unless it has one mean and std, or one for each channel or column of `shape`."""
    counts = {len(normalization.mean), len(normalization.std)}
    widths = {1, size_along(normalization.dim, shape)}
    if not counts <= widths:
        expected = " or ".join(map(str, sorted(widths)))
        raise InputError(f"{option}: expected {expected} means and stds for inputs {shape}, got {max(counts)}")


def _none(model: Model, data: DataSource) -> str:
    """E.g. "--normalize none (... as the data hold them, with mean=50 and std=4)"."""
    published = published_normalization(model.info.arch)
    other = "" if published is None else f"; weights would be {option_text(published)}"
    return (
        "--normalize none (edgeprune did not train these weights: inputs go in as the data hold them, "
        f"with {_about(data.normalization)}{other})"
    )


def _scaled_otherwise(model: Model, data: DataSource) -> tuple[str, ...]:
    """That images are scaled otherwise than those that published weights were judged on, and what would be the same."""
    if data.preparation.get("kind") != "image":
        return ()
    published = published_scaling(model.info.arch)
    own = {
        "crop_pct": f"{data.preparation['crop_pct']:.4g}",
        "interpolation": str(data.preparation["interpolation"]).split()[0],
    }
    if not published or published == own:
        return ()
    as_asked, options = ("&".join(f"{name}={value}" for name, value in each.items()) for each in (own, published))
    return (f"--data ...{as_asked} (the weights of {model.info.arch} were published with {options})",)


def _about(normalization: Normalization) -> str:
    short = _short(normalization)
    if short.inputs:
        return ", ".join(f"{name}: {_about(own)}" for name, own in short.inputs)
    return option_text(short).replace(";", " and ")


def _short(normalization: Normalization) -> Normalization:
    inputs = tuple((name, _short(own)) for name, own in normalization.inputs)
    return replace(
        normalization, mean=normalization.mean[:_MOST_SHOWN], std=normalization.std[:_MOST_SHOWN], inputs=inputs
    )
