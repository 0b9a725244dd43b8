"""What the benchmarks train with and judge by: one plain recipe for whatever tool a network comes from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgeprune.data import batches, normalize
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.reconstruction.reconstruct import N_SAMPLES
from edgeprune.records import DataSource
from edgeprune.training import recalibrate

BATCH = 64


def train(network: nn.Module, data: DataSource, epochs: int, images: int, lr: float) -> None:
    """A one-cycle schedule of AdamW, over so many images in each epoch."""
    steps = max(1, images // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * steps)
    streams = (batches(data.train, BATCH, shuffle=True, seed=epoch) for epoch in range(epochs))
    for x, y in itertools.chain.from_iterable(itertools.islice(stream, steps) for stream in streams):
        loss = nn.functional.cross_entropy(network(normalize(x, data.normalization)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def correct(network: nn.Module, data: DataSource) -> np.ndarray:
    """Whether each sample of the test split is given its class, bool `(n_samples,)`."""
    found = []
    with torch.no_grad():
        for x, y in batches(data.test, 500):
            found.append((network(normalize(x, data.normalization)).argmax(1) == y).numpy())
    return np.concatenate(found)


def loss(network: nn.Module, data: DataSource, n_samples: int) -> float:
    """The mean cross entropy on the first samples of the validation split."""
    found, seen = 0.0, 0
    with torch.no_grad():
        for x, y in batches(data.val, 500):
            x, y = x[: n_samples - seen], y[: n_samples - seen]
            found += nn.functional.cross_entropy(network(normalize(x, data.normalization)), y, reduction="sum").item()
            seen += len(y)
            if seen >= n_samples:
                break
    return found / seen


def samples(data: DataSource, size: int) -> list[tuple[Tensor, Any]]:
    """The training samples that a cut network sees, normalised, with labels for what needs them."""
    stream = batches(data.train, size, shuffle=True, seed=0)
    return [(normalize(x, data.normalization), y) for x, y in itertools.islice(stream, N_SAMPLES // size)]


def renormalise(module: nn.Module, data: DataSource) -> None:
    """Estimate batch norm again on as many samples, in place."""
    recalibrate(module, data, data.normalization, n_batches=N_SAMPLES // 128, batch_size=128, seed=0)


def renormalised(slim: Program, data: DataSource) -> Program:
    """With batch norm estimated again on the same samples, and nothing else."""
    module = slim.own_module()
    assert isinstance(module, fx.GraphModule)
    renormalise(module, data)
    return reexport_like(module, slim)
