"""Taylor scores from the gradients of a training loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.importance import Scores
from edgeprune.importance.criteria import effects

_CALL = "call observe() after backward() and before zero_grad()"


class Observed:
    """What removing each unit would do to the loss: the mean over all backward passes that were observed."""

    def __init__(self) -> None:
        self.n_observed = 0
        self._totals: list[np.ndarray] = []

    def add(self, graph: ChannelGraph, parameters: Mapping[str, Tensor]) -> bool:
        """Take the gradients that the parameters have now.

        Returns:
            Whether they count: gradients that overflowed, as those of a loss scale that is too large, do not.

        Raises:
            InputError: none of them has a gradient.
        """
        gradients = [tensor.grad for tensor in parameters.values() if tensor.grad is not None]
        if not gradients:
            raise InputError(f"observe: expected parameters with gradients, got none; {_CALL}")
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return False
        step = effects(graph, parameters)
        self._totals = step if not self._totals else [a + b for a, b in zip(self._totals, step, strict=True)]
        self.n_observed += 1
        return True

    def scores(self) -> Scores:
        """For each group `(n_units,)`.

        Raises:
            InputError: nothing was observed.
        """
        if not self.n_observed:
            raise InputError(
                "criterion taylor: expected gradients that were observed since the last step, got none; "
                f"{_CALL}, on the module before the first step too"
            )
        return [total / self.n_observed for total in self._totals]

    def state(self) -> dict[str, Any]:
        """All of it as tensors and numbers."""
        return {"n": self.n_observed, "totals": [torch.from_numpy(total.copy()) for total in self._totals]}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Observed:
        """What `state` gave."""
        observed = cls()
        observed.n_observed = int(state["n"])
        observed._totals = [total.numpy().copy() for total in state["totals"]]
        return observed
