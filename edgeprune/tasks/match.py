"""Match: no labels; a network is to answer as the dense one does, whatever it gives out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.records import DataSource, Metric
from edgeprune.tasks.outputs import described, leaves, to_array
from edgeprune.tasks.task import BaseTask, Outcomes, finite
from edgeprune.tasks.wholebatch import batch_mean

_TINY = 1e-12


@dataclass(frozen=True)
class Match(BaseTask):
    """Targets are the dense network's outputs: a tensor, or several in dicts, tuples, lists and dataclasses.

    The metric is agreement: 1 - relative error, which of a sample is `|got - want| / |want|`, a mean over the outputs.
    """

    name = "match"
    metric = Metric("agreement")
    by_reference = True

    def check(self, outputs: Any, data: DataSource) -> None:
        if not [leaf for _, leaf in leaves(outputs) if _is_float(leaf)]:
            raise InputError(
                f"data {data.name}: expected an output of floats, which can be matched, got {described(outputs)}"
            )

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The squared difference over the squared size of what is wanted, a mean over the outputs of floats."""
        pairs = [(got, want.detach()) for got, want in _pairs(outputs, targets) if _is_float(want)]
        if not pairs:
            raise InputError(f"outputs: expected one of floats, got {described(outputs)}")
        parts = [
            (got - want).square().mean() / batch_mean(want.square().mean()).clamp(min=_TINY) for got, want in pairs
        ]
        return torch.stack(parts).mean()

    def distillation(self, outputs: Any, teacher_outputs: Any) -> None:
        """None: the loss is it."""
        return

    def scoring(self, outputs: Any, targets: Any, seed: int) -> Tensor:
        """The outputs along a random direction, each relative to its size.

        On the dense network itself the loss has no gradient. Squared effects along random directions have the squared
        change of the outputs as their mean (Hutchinson 1990).
        """
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for _, got in leaves(outputs):
            if _is_float(got):
                size = got.detach().square().mean().sqrt().clamp(min=_TINY)
                signs = torch.randint(0, 2, got.shape, generator=generator).to(got.device, got.dtype) * 2 - 1
                parts.append((got * signs).sum() / (size * got.numel() ** 0.5))
        return torch.stack(parts).sum()

    def outcomes(self, outputs: Any, targets: Any) -> np.ndarray:
        """The agreement of each sample, float64 `(n,)`; 1 at most."""
        pairs = _pairs(outputs, targets)
        n = next((len(want) for _, want in pairs if want.ndim), 1)
        errors = [_relative(to_array(got), to_array(want), n) for got, want in pairs]
        if not errors:
            raise InputError("outputs: expected tensors, got none")
        return 1.0 - np.mean(errors, axis=0)

    def value(self, outcomes: Outcomes) -> float:
        return finite(float(np.mean(outcomes)), self.metric)

    def resampled(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts @ outcomes / counts.shape[1])


def _is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"


def _pairs(outputs: Any, targets: Any) -> list[tuple[Any, Any]]:
    """What is got beside what is wanted, output by output; raises InputError where they are not built alike."""
    got, wanted = leaves(outputs), leaves(targets)
    shapes = [[(name, tuple(value.shape)) for name, value in found] for found in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"outputs: expected those of the dense network, {described(targets)}, got {described(outputs)}"
        )
    return [(own, other) for (_, own), (_, other) in zip(got, wanted, strict=True)]


def _relative(got: np.ndarray, want: np.ndarray, n: int) -> np.ndarray:
    """The relative error of each sample, `(n,)`; of whole numbers and truth values the share that differs.

    Where nothing is wanted, any answer but nothing is wholly wrong. An output without the batch counts for all samples.
    """
    rows = [part.reshape(n if part.ndim and len(part) == n else 1, -1) for part in (got, want)]
    if want.dtype.kind not in "fc":
        found = (rows[0] != rows[1]).mean(axis=1)
    else:
        off, size = np.linalg.norm(rows[0] - rows[1], axis=1), np.linalg.norm(rows[1], axis=1)
        found = np.divide(off, size, out=np.sign(off), where=size != 0)  # NaN stays NaN
    return np.broadcast_to(found, n)
