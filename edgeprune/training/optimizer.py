"""From settings to an optimizer and its schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgeprune.errors import InputError
from edgeprune.records import TrainSettings

# Peak learning rate and weight decay where the settings leave them open.
DEFAULTS = {"adamw": (2e-3, 5e-2), "sgd": (5e-2, 5e-4)}
MOMENTUM = 0.9
WARMUP = 0.05  # share of all steps


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Weights decay; biases and the 1-D parameters of normalisation do not."""
    lr, decay = DEFAULTS[settings.optimizer]
    lr = settings.lr if settings.lr is not None else lr
    decay = settings.weight_decay if settings.weight_decay is not None else decay
    params = [param for param in module.parameters() if param.requires_grad]
    groups = [
        {"params": [param for param in params if param.dim() > 1], "weight_decay": decay},
        {"params": [param for param in params if param.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(f"{type(module).__name__}: expected parameters to train, got none")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


def make_schedule(optimizer: torch.optim.Optimizer, n_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A warm-up and a cosine over `n_steps` steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, n_steps))


def cosine(step: int, total: int) -> float:
    """Factor on the peak learning rate: a linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
