"""The moving average of a network's weights, which generalises better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.graph.precision import HALF


class Average:
    """The average of a module's parameters and buffers over the steps, whose weights fall by `decay` with each.

    After n steps the decay is at most (1 + n) / (10 + n), as of TensorFlow's ExponentialMovingAverage, so that a short
    training does not end near where it began. Batch norm's running statistics are averaged as the weights are: they
    belong to these, and change as slowly. Whole numbers are the latest. With a decay of 0 there is no average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._n_steps = module, decay, 0
        self._average = {name: _precise(tensor) for name, tensor in self._own()}

    def _own(self) -> list[tuple[str, Tensor]]:
        """What is averaged, as it is now: a module may put another tensor in a buffer's place."""
        named = (*self._module.named_parameters(), *self._module.named_buffers()) if self._decay else ()
        return [(name, tensor.detach()) for name, tensor in named]

    @torch.no_grad()
    def after_step(self) -> None:
        """The weights have changed."""
        decay = min(self._decay, (1 + self._n_steps) / (10 + self._n_steps))
        self._n_steps += 1
        for name, own in self._own():
            average = self._average[name]
            if own.is_floating_point() or own.is_complex():
                # What stays is exactly as it is, the -inf of a mask among it.
                moved = average.lerp(own.to(average.dtype), 1 - decay)
                average.copy_(torch.where(average == own, average, moved))
            else:
                average.copy_(own)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module with the average for its weights; then they are put back."""
        latest = {name: own.clone() for name, own in self._own()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(latest)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, own in self._own():
            own.copy_(tensors[name])

    def state_dict(self) -> dict[str, Any]:
        """What goes on, as plain values and tensors; empty where there is no average."""
        return {"step": self._n_steps, "average": dict(self._average)} if self._decay else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that is built as this one's."""
        self._n_steps = int(state.get("step", 0))
        for name, average in self._average.items():
            average.copy_(state["average"][name])


def _precise(tensor: Tensor) -> Tensor:
    """A copy, of half precision in float32: small changes would be lost."""
    return tensor.to(torch.float32) if tensor.dtype in HALF else tensor.clone()
