"""The time of a whole training step: forward, backward, and the optimizer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from edgeprune.optim import make
from edgeprune.training import threads_set

from .place import Place

_WARM_UP = 5


def step_time(place: Place, optimizer: str, options: dict[str, Any], rounds: int = 50) -> dict[str, float]:
    """Milliseconds of a step with this optimizer and with SGD with momentum, in turns, and their ratio.

    Each has a network of its own and the same batch. The ratio is that of the same round: its median and quartiles.

    Args:
        options: of the optimizer, e.g. `structure`.
        rounds: how often each takes its turn; some more come before, which are not counted.
    """
    with threads_set(place.machine.threads):
        steps = {"sgd": _step(place, "sgd", {}), "own": _step(place, optimizer, options)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        place.progress.stage(f"{place.run.name}: {rounds} rounds")
        for turn in range(-_WARM_UP, 3 if place.run.quick else rounds):
            for name, step in steps.items():
                taken = step()
                if turn >= 0:
                    seconds[name].append(taken)
    low, middle, high = statistics.quantiles(map(float.__truediv__, seconds["own"], seconds["sgd"]), n=4)
    return {
        "step_ms": 1e3 * statistics.median(seconds["own"]),
        "sgd_step_ms": 1e3 * statistics.median(seconds["sgd"]),
        "step_ratio": middle,
        "step_ratio_low": low,
        "step_ratio_high": high,
    }


def _step(place: Place, optimizer: str, options: dict[str, Any]) -> Callable[[], float]:
    """Makes one step, and returns its seconds."""
    device, size = place.machine.torch_device, place.settings().batch_size
    module: nn.Module = place.build().to(device).train()
    x = torch.randn(size, *place.data.input_shape, device=device)
    y = torch.arange(size, device=device) % len(place.data.classes)
    own = make(optimizer, module.named_parameters(), **options)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def step() -> float:
        wait()
        started = time.perf_counter()
        own.zero_grad()
        F.cross_entropy(module(x), y).backward()
        own.step()
        wait()
        return time.perf_counter() - started

    return step
