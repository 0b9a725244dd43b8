"""What torchvision and timm say of the inputs that their weights were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.errors import InputError
from edgeprune.formats import architectures
from edgeprune.records import Normalization

Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std


def weights_normalization(spec: str | None) -> Normalization:
    """The normalisation of the weights that an architecture is published with: torchvision's `transforms()`, timm's
    configuration, or the attribute `pretrained_cfg` or `default_cfg` of a network of one's own.

    Example: `weights_normalization("torchvision:resnet18").mean == (0.485, 0.456, 0.406)`.

    Raises:
        InputError: no architecture, one that says nothing, or one whose weights differ in it.
    """
    if spec is None:
        raise InputError("--normalize weights: expected --arch, which says how its weights were trained, got none")
    source, name, arguments = architectures.parse(spec)
    if source == "torchvision":
        return _torchvision(spec, name, arguments.get("weights"))
    model = architectures.build(spec)
    for attribute in ("pretrained_cfg", "default_cfg"):
        found = _scaling(getattr(model, attribute, None))
        if found is not None:
            return Normalization(*found)
    raise InputError(
        f"--normalize weights: expected an architecture that says its weights' mean and std, got {spec}, which does not"
    )


def published_normalization(spec: str | None) -> Normalization | None:
    """As `weights_normalization`; None where an architecture of torchvision's or timm's says nothing, or is neither."""
    if spec is None or not spec.startswith(("torchvision:", "timm:")):
        return None
    try:
        return weights_normalization(spec)
    except InputError:
        return None


def published_scaling(spec: str | None) -> dict[str, str]:
    """How images were scaled for an architecture's published weights, as options of data: `{"crop_pct": "0.875"}`.

    Empty where an architecture of torchvision's or timm's does not say it, or is neither.
    """
    if spec is None or not spec.startswith(("torchvision:", "timm:")):
        return {}
    source, name, arguments = architectures.parse(spec)
    if source == "torchvision":
        asked = arguments.get("weights")
        return _scaled_by_torchvision(name, asked.rpartition(".")[2] if isinstance(asked, str) else None)
    found = getattr(architectures.build(spec), "pretrained_cfg", None) or {}
    told = {name: found.get(name) for name in ("crop_pct", "interpolation")}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in told.items() if value}


def _scaled_by_torchvision(name: str, weights: str | None) -> dict[str, str]:
    """Of the weights named, or of the architecture's usual ones."""
    from torchvision import models

    try:
        entries = models.get_model_weights(name)
    except ValueError:
        return {}
    entry = getattr(entries, weights or "DEFAULT", None)
    transforms: Any = None if entry is None else entry.transforms()
    crop, resize = (getattr(transforms, part, None) for part in ("crop_size", "resize_size"))
    if not crop or not resize:
        return {}
    return {"crop_pct": f"{crop[0] / resize[0]:.4g}", "interpolation": str(transforms.interpolation.value)}


def _torchvision(spec: str, name: str, asked: Any) -> Normalization:
    known = _published(spec, name)
    if isinstance(asked, str):
        chosen = asked.rpartition(".")[2]  # of ResNet18_Weights.IMAGENET1K_V1
        known = {chosen: known[chosen]} if chosen in known else {}
    scalings = set(known.values())
    if len(scalings) == 1:
        return Normalization(*scalings.pop())
    if not scalings:
        raise InputError(f"--normalize weights: expected weights that say their mean and std, got none for {spec}")
    several = "; ".join(f"{entry} {option_text(Normalization(*scaling))}" for entry, scaling in known.items())
    raise InputError(f"--normalize weights: expected weights of one mean and std, got several for {spec}: {several}")


def _published(spec: str, name: str) -> dict[str, Scaling]:
    """The scaling of each of an architecture's weights that say it, by their names."""
    from torchvision import models

    try:
        entries = list(models.get_model_weights(name))
    except ValueError as error:
        raise InputError(f"--normalize weights: expected an architecture of torchvision's, got {spec}") from error
    found = {entry.name: _scaling(_as_mapping(entry.transforms())) for entry in entries}
    return {entry: scaling for entry, scaling in found.items() if scaling is not None}


def _as_mapping(transforms: Any) -> Mapping[str, Any]:
    return {name: getattr(transforms, name, None) for name in ("mean", "std")}


def _scaling(configuration: Any) -> Scaling | None:
    """Mean and std of a configuration, e.g. timm's `{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), ...}`."""
    if not isinstance(configuration, Mapping):
        return None
    values = [configuration.get(name) for name in ("mean", "std")]
    if not all(isinstance(value, (list, tuple)) and value for value in values):
        return None
    mean, std = (tuple(float(number) for number in value) for value in values if value is not None)
    return mean, std


def option_text(normalization: Normalization) -> str:
    """As --normalize takes it, e.g. `mean=0.5;std=0.25`; of inputs by name one after the other."""
    if normalization.inputs:
        return " ".join(f"{name}:{option_text(own)}" for name, own in normalization.inputs)
    return ";".join(
        f"{name}={','.join(f'{value:.6g}' for value in values)}"
        for name, values in (("mean", normalization.mean), ("std", normalization.std))
    )
