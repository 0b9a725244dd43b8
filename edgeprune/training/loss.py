"""What training makes small: cross entropy, alone or beside what a teacher says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 2.0  # Hinton et al., Distilling the Knowledge in a Neural Network, 2015
TEACHER_WEIGHT = 0.5

# Of inputs, logits and labels: the mean over the batch.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_loss(teacher: nn.Module | None) -> Loss:
    """Cross entropy, or its mean with the teacher's softened outputs (times T^2, so that gradients stay in scale)."""
    if teacher is None:
        return lambda x, logits, y: F.cross_entropy(logits, y)

    def distill(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(x) / TEMPERATURE, dim=1)
        got = F.log_softmax(logits / TEMPERATURE, dim=1)
        soft = F.kl_div(got, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        return TEACHER_WEIGHT * soft + (1 - TEACHER_WEIGHT) * F.cross_entropy(logits, y)

    return distill
