"""How `compress` finetunes: as the model was trained and by the recipe of then, unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edgeprune.catalog import IN_RECIPE_FILES, OPTIONS, RECIPE, check_values, find
from edgeprune.errors import InputError
from edgeprune.graph.precision import HALF
from edgeprune.records import DataSource, Model
from edgeprune.requests import CompressRequest
from edgeprune.settings import Recipe, TrainSettings
from edgeprune.tasks.task import Task
from edgeprune.training import weight_type
from edgeprune.training.checks import check_settings, unfit

_STEPS = 1500  # optimizer steps of one finetuning where no epochs are given
_UNKNOWN = TrainSettings(lr=1e-3)  # for a model that does not say how it was trained
_SETTLED = 2 / 3  # of the epochs: at a high learning rate a good epoch is luck on the validation split
_BESIDE = ("batch_size", "optimizer", "lr", "weight_decay", "schedule")

Assume = Callable[[str], None]


def finetuning(request: CompressRequest, model: Model, data: DataSource, task: Task, assume: Assume) -> TrainSettings:
    """How it is finetuned after each cut.

    Raises:
        InputError: the request's recipe is out of range, or the data, the task or the optimizer do not take it.
    """
    asked = _asked(request)
    trained = model.info.training or _UNKNOWN
    settings = replace(_other(trained.for_finetuning(), asked), seed=request.seed, best_from=_SETTLED)
    settings = replace(settings, epochs=_epochs(request, data, settings, assume))
    if not settings.epochs:
        if asked:
            raise InputError(f"{_named(asked)}: expected epochs to finetune, got --finetune-epochs 0")
        return replace(settings, recipe=Recipe())
    if settings.recipe.warmup is not None:  # the same share of the training
        whole = max(settings.recipe.warmup, trained.epochs, 1)
        settings = _with(settings, {"warmup": settings.recipe.warmup * settings.epochs / whole})
    settings = _with(_kept(settings, asked, data, task, assume), _of_recipe(asked))
    check_settings(settings, data, task)
    if weight_type(model.program) in HALF:
        assume("finetuning on float32 copies of the weights, which are rounded after each step")
    return settings


def check_recipe(request: CompressRequest, data: DataSource | None) -> None:
    """Raise InputError where a recipe is asked for, but nothing here finetunes."""
    asked = _asked(request)
    if asked and (request.finetune is not None or data is None):
        got = "no data" if request.finetune is None else f"--finetune {request.finetune}, which has its own way"
        raise InputError(f"{_named(asked)}: expected to finetune on data here, got {got}")


def trained_epochs(model: Model) -> int | None:
    """How many epochs it was trained by the settings that it is finetuned by; None where that is not known."""
    trained = model.info.training
    return None if trained is None or trained.makes_zeros else trained.epochs


def _asked(request: CompressRequest) -> Mapping[str, Any]:
    asked = request.recipe or {}
    for name in asked:
        if name not in IN_RECIPE_FILES:
            raise InputError(f"recipe: expected some of {', '.join(IN_RECIPE_FILES)}, got {name}")
    check_values(asked, IN_RECIPE_FILES)
    return asked


def _named(asked: Mapping[str, Any]) -> str:
    return f"recipe ({', '.join(name.replace('_', '-') for name in asked)})"


def _epochs(request: CompressRequest, data: DataSource, settings: TrainSettings, assume: Assume) -> int:
    if request.finetune is not None:
        return 0
    if request.finetune_epochs is not None:
        return request.finetune_epochs
    per_epoch = max(1, -(-len(data.train) // settings.batch_size))  # type: ignore[arg-type]
    epochs = min(60, max(2, round(_STEPS / per_epoch))) * len(request.widths or (1,))
    assume(f"--finetune-epochs {epochs}")
    return epochs


def _other(settings: TrainSettings, asked: Mapping[str, Any]) -> TrainSettings:
    """The settings with the optimizer and the batches that are asked for."""
    optimizer = asked.get("optimizer", settings.optimizer)
    if find("optimizer", optimizer).sparse:
        raise InputError(f"recipe: expected the optimizer adamw or sgd to finetune with, got {optimizer}")
    if optimizer != settings.optimizer:  # what went with another one does not count
        settings = replace(settings, lr=None, weight_decay=None, options={})
    beside = {name: value for name, value in asked.items() if name in _BESIDE}
    own = {name: value for name, value in asked.items() if name in OPTIONS}
    return replace(settings, **beside, options={**settings.options, **own})


def _kept(
    settings: TrainSettings, asked: Mapping[str, Any], data: DataSource, task: Task, assume: Assume
) -> TrainSettings:
    """The settings with what can be followed of the model's own recipe, which is told."""
    for name, problem in unfit(settings, data, task).items():
        if name not in asked:
            assume(f"without the {name.replace('_', ' ')} that the model was trained with: {problem}")
        settings = _with(settings, {name: getattr(Recipe(), name)})
    told = _with(settings, {name: getattr(Recipe(), name) for name in _of_recipe(asked)}).recipe
    if told.asked:
        assume(f"{told.as_options} (the recipe that the model was trained by)")
    return settings


def _of_recipe(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if name in RECIPE}


def _with(settings: TrainSettings, changed: Mapping[str, Any]) -> TrainSettings:
    return replace(settings, recipe=replace(settings.recipe, **changed))
