"""What training makes small: cross entropy, alone or with what a teacher says added."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Of inputs, logits and labels: the mean over the batch.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_loss(teacher: nn.Module | None) -> Loss:
    """Cross entropy, plus the divergence from the teacher's probabilities where there is one.

    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, at temperature 1: finetuning is short, and a
    higher temperature spends it on the classes that the teacher finds unlikely.
    """
    if teacher is None:
        return lambda x, logits, y: F.cross_entropy(logits, y)

    def distill(x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(x), dim=1)
        got = F.log_softmax(logits, dim=1)
        return F.nll_loss(got, y) + F.kl_div(got, wanted, reduction="batchmean", log_target=True)

    return distill
