"""From settings to an optimizer and its schedule."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from edgeprune.catalog import find
from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.methods.base import make_grouper
from edgeprune.optim import make
from edgeprune.optim.rda import round_starts
from edgeprune.settings import TrainSettings

WARMUP = 0.05  # share of all steps
_HALVINGS = 10


def make_optimizer(
    module: nn.Module,
    settings: TrainSettings,
    n_steps: int,
    graph: ChannelGraph | None = None,
    trained: Iterable[tuple[str, nn.Parameter]] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of the settings over all parameters that are trained.

    Args:
        n_steps: of the whole training.
        graph: the network's channel groups, for the structure channel-group.
        trained: the parameters, where they are not the module's own.

    Raises:
        InputError: nothing to train, or an option that does not fit.
    """
    if not any(param.requires_grad for param in module.parameters()):
        raise InputError(f"{type(module).__name__}: expected parameters to train, got none")
    own = find("optimizer", settings.optimizer).options
    options = {name: value for name, value in settings.options.items() if name in own}
    if "structure" in options:
        options["structure"] = make_grouper(options["structure"], module, graph)
    if settings.optimizer == "sgd" and options.get("momentum") == 0:
        options["nesterov"] = False  # which is a way to use momentum
    return make(
        settings.optimizer,
        module.named_parameters() if trained is None else trained,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        steps=n_steps,
        **options,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, n_steps: int, done: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over `n_steps` steps: with dense optimizers a warm-up first, with sparse ones it only falls.

    The warm-up takes the epochs that the recipe says, else a twentieth of the steps. The schedule begins where `done`
    steps are behind it.

    Where training starts anew so does the learning rate, so that each round is a whole training.
    """
    shape = SHAPES[settings.schedule or "cosine"]
    warmup = 0 if find("optimizer", settings.optimizer).sparse else _warmup(settings, n_steps)
    starts = (*round_starts(n_steps, settings.options.get("restarts", 0)), n_steps)

    def factor(further: int) -> float:
        step = done + further
        number = max(0, bisect_right(starts[:-1], step) - 1)
        start, stop = starts[number], starts[number + 1]
        return lr_factor(shape, step - start, stop - start, warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _warmup(settings: TrainSettings, n_steps: int) -> int:
    """Steps in which the learning rate rises."""
    epochs = settings.recipe.warmup
    if epochs is None:
        return max(1, round(WARMUP * n_steps))
    return round(epochs * n_steps / max(1, settings.epochs))


def lr_factor(shape: Callable[[float], float], step: int, total: int, warmup: int) -> float:
    """Factor on the peak learning rate: a linear warm-up over `warmup` steps, then `shape` over the rest."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return shape(min(1.0, (step - warmup) / max(1, total - warmup)))


def cosine(done: float) -> float:
    """Half a cosine down to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def step_down(done: float) -> float:
    """Halved ten times at equal distances: 1 at first, 2^-10 at the end."""
    return 0.5 ** math.floor(done * (_HALVINGS + 1)) if done < 1 else 0.5**_HALVINGS


def constant(done: float) -> float:
    """1 all the time."""
    return 1.0


SHAPES: Mapping[str, Callable[[float], float]] = {"cosine": cosine, "step": step_down, "constant": constant}
