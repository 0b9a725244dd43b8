"""A client: it trains the network that it is sent on samples of its own, and sends back what is in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from edgeprune.data import Inputs, fed, order, prepared, read
from edgeprune.federated.masks import Global, put, readjusted, state_of, trained
from edgeprune.federated.messages import Order, Reply, packed, unpacked
from edgeprune.settings import FederatedSettings
from edgeprune.training.carried import let_state_go
from edgeprune.training.judging import Judge
from edgeprune.training.placement import begin_training, device_of, float_type, seeded

_GRADIENT_BATCHES = 16  # what weights come back by is taken over at most so many


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One of the clients: `indices` `(n,)` are its samples of `split`; the module is only where it computes.

    `like` is what networks that it is sent look like, and how many weights of each layer are in.
    """

    name: str
    module: nn.Module
    split: Dataset[Any]
    indices: Tensor
    judge: Judge
    settings: FederatedSettings
    like: Global

    def __call__(self, asked: Order) -> Reply:
        """Train for the local epochs; in their middle the smallest weights make place, where it is asked for.

        What is not finite is sent as it is, for the server to see.

        Raises:
            InputError: an order that does not fit the network.
        """
        before = unpacked(asked.arrays, self.like)
        put(self.module, before.state)
        masks, params, epochs = dict(before.masks), trained(self.module), self.settings.local_epochs
        seed = _seed(self.settings.seed, asked.number, self.name)
        loss = math.nan
        with seeded(seed, 0, device_of(self.module)):
            optimizer = self._optimizer(params)
            for epoch in range(epochs):
                if asked.moved > 0 and masks and epoch == epochs // 2:
                    masks = readjusted(state_of(self.module), masks, self._gradients(seed), asked.moved)
                    optimizer = self._optimizer(params)  # what came has no momentum of its own yet
                loss = self._epoch(optimizer, masks, seed + epoch)
                if not math.isfinite(loss):
                    break
        after = Global(state_of(self.module), masks)
        same = all(torch.equal(own, before.masks[name]) for name, own in masks.items())
        return Reply(self.name, packed(after, with_masks=not same), len(self.indices), loss)

    def _optimizer(self, params: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        own = self.settings
        return torch.optim.SGD(params.values(), own.lr, momentum=own.momentum, weight_decay=own.weight_decay)

    def _epoch(self, optimizer: torch.optim.Optimizer, masks: dict[str, Tensor], seed: int) -> float:
        """One pass over the samples; the mean loss, or NaN as soon as it is no number."""
        params = trained(self.module)
        # Answers that a network gives without dropout are not met by one that trains with it.
        begin_training(self.module, draws=not self.judge.task.by_reference)
        _zero_outside(params, masks)
        total = 0.0
        for n, loss in self._losses(seed):
            total += n * loss.item()
            if not math.isfinite(total):
                return math.nan
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _zero_outside(params, masks)
        return total / len(self.indices)

    def _gradients(self, seed: int) -> dict[str, Tensor]:
        """Of the mean loss, in eval mode, so that no statistics change; also where a weight is out."""
        self.module.eval()
        params = trained(self.module)
        sums = {name: torch.zeros_like(param) for name, param in params.items()}
        for batch, (n, loss) in enumerate(self._losses(seed)):
            if batch == _GRADIENT_BATCHES:
                break
            found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            for own, gradient in zip(sums.values(), found, strict=True):
                own.add_(n * gradient if gradient is not None else 0.0)
        return {name: own.cpu().nan_to_num_(0.0, 0.0, 0.0) for name, own in sums.items()}

    def _losses(self, seed: int) -> Iterator[tuple[int, Tensor]]:
        """The size and the mean loss of each batch."""
        place = device_of(self.module), float_type(self.module)
        parts = order(len(self.indices), self.settings.batch_size, shuffle=True, seed=seed)
        batches = [self.indices[part] for part in parts]
        for batch, (raw, targets) in zip(batches, read(self.split, batches), strict=True):
            x: Inputs = prepared(raw, self.judge.normalization, *place)
            y = self.judge.targets(x, targets)
            outputs = fed(self.module, x)
            yield len(batch), self.judge.task.loss(outputs, y)
            let_state_go(self.module)


def _zero_outside(params: dict[str, nn.Parameter], masks: dict[str, Tensor]) -> None:
    """Gradients reach every weight, and momentum those that have just gone."""
    with torch.no_grad():
        for name, mask in masks.items():
            params[name].mul_(mask.to(params[name].device))


def _seed(seed: int, number: int, client: str) -> int:
    """Another for each client in each round."""
    words = (seed, number, *client.encode())
    return int(np.random.SeedSequence(words).generate_state(1)[0])
