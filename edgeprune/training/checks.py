"""Whether settings are in range, and whether the data and the task take what a recipe asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from edgeprune.data import read
from edgeprune.data.inputs import first_of
from edgeprune.data.splits import spaced
from edgeprune.errors import InputError
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.tasks.task import Task
from edgeprune.training.augment import SMALLEST

_MAX_STEP = 1e30  # weights are float32: a step of more is infinite
_STEPS = ("learning rate", "weight decay")
_NUMBERS: Mapping[str, bool] = {  # whether they may be 0
    "batch size": False, "learning rate": False, "threads": False, "accumulate": False,
    "epochs": True, "weight decay": True, "workers": True,
}  # fmt: skip
_LOOKED = 32  # samples that tell the range of the pixels
_HALF_RANGE = 128


def check_settings(settings: TrainSettings, data: DataSource, task: Task) -> None:
    """Raise InputError where a training cannot go by the settings; says what is expected."""
    settings.check()
    _check_numbers(settings)
    if settings.channels_last and len(data.input_shape) != 3:  # () where inputs have names
        raise InputError(f"channels last: {_no_images(data)}")
    for name, problem in unfit(settings, data, task).items():
        raise InputError(f"{name.replace('_', ' ')}: {problem}")


def unfit(settings: TrainSettings, data: DataSource, task: Task) -> dict[str, str]:
    """What the recipe asks for that the data, the task or the optimizer do not take, by name, with the reason."""
    asked = settings.recipe.asked
    found = {name: rule(settings, data, task) for name, rule in _RULES.items() if name in asked}
    return {name: problem for name, problem in found.items() if problem is not None}


def _check_numbers(settings: TrainSettings) -> None:
    for name, may_be_zero in _NUMBERS.items():
        value = getattr(settings, name.replace("learning rate", "lr").replace(" ", "_"))
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
            raise InputError(f"{name}: expected {'0 or more' if may_be_zero else 'more than 0'}, got {value}")
        if name in _STEPS and value > _MAX_STEP:
            raise InputError(f"{name}: expected at most {_MAX_STEP:g}, got {value:g}")


# -- recipes: each rule says what does not fit, or None ---------------------------------------------------------------


def _augment(settings: TrainSettings, data: DataSource, task: Task) -> str | None:
    if len(data.input_shape) != 3:
        return _no_images(data)
    height, width = data.input_shape[1:]
    if min(height, width) < SMALLEST:
        return f"expected images of at least {SMALLEST}x{SMALLEST} pixels, got {width}x{height}"
    problem = None if task.by_reference else _targets_that_stay(data, task)
    return problem or (_no_pixels(data) if settings.recipe.augment != "crop-flip" else None)


def _targets_that_stay(data: DataSource, task: Task) -> str | None:
    """Why the targets do not move with their images, where they belong to places in them."""
    kind, shape = data.targets.kind, data.targets.shape
    if kind == "other":
        return "expected targets that do not depend on places in the image, got some that only the task knows"
    if kind == "masks":
        if shape != data.input_shape[1:]:
            return f"expected masks of the size of their images, {data.input_shape[1:]}, got {shape}"
        none = "expected a task with a value for pixels that do not count, for what comes in from outside, got none"
        return none if task.ignored is None else None
    if len(shape) > 1:
        return f"expected targets that do not depend on places in the image, got maps {shape}"
    return None


def _no_pixels(data: DataSource) -> str | None:
    """Why the values are no pixels that torchvision's policies can change: they take bytes, grey or in colour."""
    if data.byte_scale is None:
        return "expected images of bytes, got values whose range nothing says; crop-flip takes any"
    if data.input_shape[0] not in (1, 3):
        return f"expected grey or colour images, got {data.input_shape[0]} channels; crop-flip takes any"
    index = torch.from_numpy(spaced(len(data.train), _LOOKED))  # type: ignore[arg-type]
    largest = max(float(first_of(x).max()) for x, _ in read(data.train, [index])) / data.byte_scale
    if largest < _HALF_RANGE:
        return f"expected bytes from 0 to 255, got none above {largest:.0f}; crop-flip takes any"
    return None


def _no_images(data: DataSource) -> str:
    got = f"inputs by name ({', '.join(info.name for info in data.inputs)})" if data.inputs else ""
    shape = tuple(data.input_shape)
    return f"expected images (channels, height, width), got {got or f'inputs of shape {shape}'}"


def _mixed(settings: TrainSettings, data: DataSource, task: Task) -> str | None:
    return _no_images(data) if len(data.input_shape) != 3 else _shares(settings, data, task)


def _shares(settings: TrainSettings, data: DataSource, task: Task) -> str | None:
    if task.takes_shares and not task.by_reference and data.targets.kind == "classes":
        return None
    return f"expected a task whose targets may be shares of classes, as classification's, got {task.name}"


def _warmup(settings: TrainSettings, data: DataSource, task: Task) -> str | None:
    epochs = settings.recipe.warmup or 0
    if epochs and settings.makes_zeros and settings.method is None:
        return f"expected the optimizer adamw or sgd, got {settings.optimizer}, whose learning rate only falls"
    if epochs > settings.epochs:
        return f"expected at most the {settings.epochs} epochs that are trained, got {epochs:g}"
    return None


def _ema(settings: TrainSettings, data: DataSource, task: Task) -> str | None:
    if not settings.keeps_last:
        return None
    got = settings.method or settings.optimizer
    what = "zeros" if settings.makes_zeros else "shared weights"
    return f"expected a training without {what}, which an average does not keep, got {got}"


_RULES: Mapping[str, Callable[[TrainSettings, DataSource, Task], str | None]] = {
    "augment": _augment,
    "mixup": _mixed,
    "cutmix": _mixed,
    "label_smoothing": _shares,
    "warmup": _warmup,
    "ema": _ema,
}
