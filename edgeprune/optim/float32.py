"""Parameters of half precision, trained on float32 copies of them.

AdamW divides by the root of a mean of squares plus 1e-8, and both are 0 in float16: the first step gives NaN. In half
precision a step of a thousandth of a weight is lost, too. So what is stepped is a float32 copy of each parameter, which
is then rounded (Micikevicius et al., Mixed Precision Training, ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edgeprune.graph.precision import HALF

_COPY = "float32"  # in a parameter's state


class InFloat32(torch.optim.Optimizer):
    """Goes before an optimizer of PyTorch's in the bases of a class; what is of float32 is stepped as ever."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: it would run on the copies
        """One step; the copies are part of the state, so that a training goes on where it was cut off."""
        with self._copied():
            super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the parent's, which casts a state to the type of its parameter: this one's stays float32."""
        with self._copied():
            super().load_state_dict(state_dict)

    @contextmanager
    def _copied(self) -> Iterator[None]:
        """Inside, the parameters of half precision and their gradients are float32."""
        halves = [
            (param, param.data, param.grad)
            for group in self.param_groups
            for param in group["params"]
            if param.dtype in HALF
        ]
        for param, half, grad in halves:
            copy = self.state[param].pop(_COPY, None) if param in self.state else None
            param.grad = None
            param.data = half.float() if copy is None else copy
            param.grad = None if grad is None else grad.float()
        try:
            yield
        finally:
            for param, half, grad in halves:
                self._round(param, half, grad)

    def _round(self, param: Tensor, half: Tensor, grad: Tensor | None) -> None:
        copy = self.state[param].get(_COPY, param.data) if param in self.state else param.data
        half.copy_(copy)
        if grad is not None or param in self.state:
            self.state[param][_COPY] = copy
        param.grad = None
        param.data = half
        param.grad = grad


class AdamWInFloat32(InFloat32, torch.optim.AdamW):
    """AdamW, for parameters of half precision."""


class SGDInFloat32(InFloat32, torch.optim.SGD):
    """SGD, for parameters of half precision."""
