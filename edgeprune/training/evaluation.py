"""What a classifier makes of a split: its outputs, its accuracy, its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from edgeprune.data import Share, normalize, order, read
from edgeprune.errors import InputError
from edgeprune.records import Evaluation, Normalization
from edgeprune.results import LayerZeros
from edgeprune.training.placement import device_of, float_type, in_eval

if TYPE_CHECKING:
    from edgeprune.training.team import Team

_BATCH = 512


def predict(
    module: nn.Module, split: Dataset[Any], normalization: Normalization, batch_size: int = _BATCH
) -> np.ndarray:
    """The logits `(n_samples, n_classes)` float32 over a split, in its order."""
    indices = order(len(split), batch_size)  # type: ignore[arg-type]
    return np.concatenate([logits.cpu().numpy() for logits, _ in _outputs(module, split, normalization, indices)])


def answers(
    module: nn.Module, split: Dataset[Any], normalization: Normalization, batch_size: int = _BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true classes of a split, int64 `(n_samples,)` each, in its order."""
    indices = order(len(split), batch_size)  # type: ignore[arg-type]
    pairs = [(logits.argmax(dim=1), y) for logits, y in _outputs(module, split, normalization, indices)]
    predicted, labels = (torch.cat(parts).cpu().numpy() for parts in zip(*pairs, strict=True))
    return predicted, labels


def evaluate(
    module: nn.Module,
    split: Dataset[Any],
    normalization: Normalization,
    *,
    workers: int = 0,
    team: Team | None = None,
) -> Evaluation:
    """Which samples of a split are classified correctly, and the mean cross entropy.

    Args:
        workers: so many processes read the samples ahead.
        team: the processes among which the samples are shared out; each calls this and gets the whole outcome.
    """
    n_samples = len(split)  # type: ignore[arg-type]
    share = team.share if team else Share()
    indices = [part for batch in order(n_samples, _BATCH) if len(part := share.of(batch))]
    correct, loss = torch.zeros(n_samples, dtype=torch.uint8), 0.0
    outputs = _outputs(module, split, normalization, indices, workers)
    for index, (logits, y) in zip(indices, outputs, strict=True):
        correct[index] = (logits.argmax(dim=1) == y).to("cpu", torch.uint8)
        loss += float(F.cross_entropy(logits.double(), y, reduction="sum"))
    if team and share.n_ranks > 1:
        correct, loss = team.summed(correct), float(team.summed(torch.tensor(loss, dtype=torch.float64)))
    return Evaluation(correct=correct.bool().numpy(), loss=loss / n_samples)


def layer_zeros(module: nn.Module) -> tuple[LayerZeros, ...]:
    """The exact zeros of every weight of two dims or more, tied ones once."""
    weights = [(name, param.detach()) for name, param in module.named_parameters() if param.dim() > 1]
    return tuple(LayerZeros(name, weight.numel(), int((weight == 0).sum())) for name, weight in weights)


def _outputs(
    module: nn.Module,
    split: Dataset[Any],
    normalization: Normalization,
    indices: Sequence[Tensor],
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of the samples at each of `indices`."""
    device, dtype = device_of(module), float_type(module)
    with in_eval(module), torch.no_grad():
        for x, y in read(split, indices, workers):
            logits = module(normalize(x.to(device, dtype), normalization))
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise InputError(f"{type(module).__name__}: expected logits (batch, n_classes) as output, got {got}")
            yield logits, y.to(device)
