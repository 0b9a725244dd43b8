"""A graph convolutional network over the channel groups: what a group has meets what those have that share its layers.

Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017: each layer mixes a node
with its neighbours by the normalised adjacency; Wen et al., Neural Predictor for Neural Architecture Search, ECCV 2020,
order architectures so. A node's own part has weights of its own beside that, and a learned place: in all networks cut
of one, node 3 is the same layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.predictors.base import Predict, Scale, Wiring

_WIDTH = 32
_PLACE = 8  # numbers that are learned of each node
_LAYERS = 2
_STEPS = 150
_LR = 1e-2
_DECAY = 1e-3
_MEMBERS = 3  # networks whose answers are averaged


@dataclass(frozen=True, slots=True, eq=False)
class GraphNetwork:
    """The mean of a few small networks over the groups as `wiring` joins them."""

    wiring: Wiring

    @property
    def name(self) -> str:
        """What it is called."""
        return "gcn"

    def fitted(self, x: np.ndarray, y: np.ndarray, seed: int) -> Predict:
        """Train them side by side; the generator is its own, so that seeds elsewhere stand."""
        scale, mean, spread = Scale.of(x), float(y.mean()), float(y.std()) or 1.0
        members = _Members(self.wiring, x.shape[2], seed)
        members.train(_tensor(scale(x)), _tensor((y - mean) / spread))

        def predict(more: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                answers = members(_tensor(scale(more))).mean(0)
            return np.asarray(answers.numpy().astype(float) * spread + mean)

        return predict


class _Members:
    """Networks of one form, each with weights of its own: `(n, n_groups, n_features)` in, `(n_members, n)` out."""

    def __init__(self, wiring: Wiring, n_features: int, seed: int) -> None:
        n_groups, n_fixed = wiring.fixed.shape
        self._mix = _tensor(_normalised(wiring.adjacent))
        self._fixed = _tensor(Scale.of(wiring.fixed)(wiring.fixed)).expand(_MEMBERS, 1, -1, -1)
        self._generator = torch.Generator().manual_seed(seed)
        self._place = self._drawn(1.0, n_groups, _PLACE)
        sizes = [n_features + n_fixed + _PLACE, *[_WIDTH] * _LAYERS]
        self._own = [self._drawn(size**-0.5, *pair) for size, *pair in zip(sizes, sizes, sizes[1:], strict=False)]
        self._mixed = [self._drawn(size**-0.5, *pair) for size, *pair in zip(sizes, sizes, sizes[1:], strict=False)]
        self._bias = [self._drawn(0.0, 1, _WIDTH) for _ in range(_LAYERS)]
        self._read = self._drawn(_WIDTH**-0.5, n_groups, _WIDTH)
        self._last = self._drawn(0.0, 1, 1)

    def _drawn(self, deviation: float, rows: int, columns: int) -> Tensor:
        """Weights `(n_members, 1, rows, columns)`."""
        drawn = torch.randn(_MEMBERS, 1, rows, columns, generator=self._generator)
        return (drawn * deviation).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        given = x.expand(_MEMBERS, *x.shape)
        known = torch.cat([self._fixed, self._place], 3).expand(-1, len(x), -1, -1)
        h = torch.cat([given, known], 3)
        for own, mixed, bias in zip(self._own, self._mixed, self._bias, strict=True):
            h = F.silu(h @ own + self._mix @ (h @ mixed) + bias)
        return (h * self._read).sum((2, 3)) / h.shape[2] + self._last[:, 0, 0]

    def train(self, x: Tensor, y: Tensor) -> None:
        """AdamW on all samples at once; the rate falls along a cosine."""
        weights = [self._place, *self._own, *self._mixed, *self._bias, self._read, self._last]
        optimizer = torch.optim.AdamW(weights, lr=_LR, weight_decay=_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
        for _ in range(_STEPS):
            optimizer.zero_grad(set_to_none=True)
            ((self(x) - y) ** 2).mean(1).sum().backward()
            optimizer.step()
            schedule.step()


def _normalised(adjacent: np.ndarray) -> np.ndarray:
    """Each node with itself and its neighbours, by the roots of how many those have."""
    joined = adjacent | np.eye(len(adjacent), dtype=bool)
    degree = joined.sum(1) ** -0.5
    return np.asarray(joined * degree[:, None] * degree)


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))
