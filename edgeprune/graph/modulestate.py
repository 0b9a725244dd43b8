"""What a run of a module leaves in it: attributes that its forward sets (a cache of anchors, say), and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_CONTAINERS = (dict, list, set)


class State:
    """The attributes of all modules of a network, the contents of containers among them, and its buffers' values.

    Example: `state = State(model); model(x); state.is_changed(); state.restore()`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        values = [value for _, attributes in self._attributes for value in attributes.values()]
        self._containers = [(value, value.copy()) for value in values if isinstance(value, _CONTAINERS)]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def is_changed(self) -> bool:
        """Whether an attribute is another object than it was; modes (train or eval) are left out."""
        attributes = ((vars(module), before) for module, before in self._attributes)
        return any(_differ(_without_mode(now), _without_mode(before)) for now, before in attributes) or any(
            _differ(container, content) for container, content in self._containers
        )

    def restore(self) -> None:
        """Put everything back; containers and buffers stay the same objects."""
        for module, before in self._attributes:
            if _differ(vars(module), before):
                vars(module).clear()
                vars(module).update(before)
        for container, content in self._containers:
            if _differ(container, content):
                _fill(container, content)
        with torch.no_grad():
            for buffer, value in self._buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever is run inside, the model is as before afterwards, its mode included."""
    state = State(model)
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        state.restore()
        for module, mode in modes:
            if type(module).train is not nn.Module.train:  # more than an attribute says the mode: a graph, say
                module.train(mode)
        for module, mode in modes:
            module.training = mode


def _without_mode(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != "training"}


def _differ(now: Any, before: Any) -> bool:
    """Whether two containers hold other objects, or hold them under other keys or in another order."""
    if len(now) != len(before):
        return True
    if isinstance(now, dict):
        same_keys = all(a is b or a == b for a, b in zip(now, before, strict=True))
        now, before = now.values(), before.values() if same_keys else ()
        return not same_keys or any(_is_other(a, b) for a, b in zip(now, before, strict=True))
    return any(_is_other(a, b) for a, b in zip(now, before, strict=True))


def _is_other(now: Any, before: Any) -> bool:
    """Whether this is another object, and no equal number or text, which Python may make anew."""
    plain = type(now) is type(before) and isinstance(now, (int, float, str, bool)) and now == before
    return not (now is before or plain)


def _fill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
