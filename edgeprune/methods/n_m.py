"""N:M sparsity: of every M weights in a row at most N are not zero, as hardware with sparse products wants it."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.methods.base import Method, Subject
from edgeprune.optim import transposed_weights

_DECAY = 2e-4  # the paper's lambda_W


class NM(Method):
    """Sparse-refined straight-through estimator: the forward pass sees the N largest of every M weights.

    Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, ICLR 2021: all
    weights take the gradient of those that were seen, and those that were not shrink by lambda_W = 2e-4 times
    themselves. The M are neighbours along the input channels, at the same place of a kernel. A layer with fewer than M
    inputs has no such row and stays dense.

    Options: n_m, e.g. 2:4.

    Raises:
        InputError: N is not below M, the inputs of a layer are not divisible by M, or no layer has that many.
    """

    name = "n-m"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.n, self.m = parse_n_m(subject.options["n_m"])
        transposed = transposed_weights(subject.module)
        self.params: dict[str, tuple[torch.nn.Parameter, int]] = {}
        for name, param in subject.parameters().items():
            dim = 0 if name in transposed else 1
            if param.dim() < 2 or param.shape[dim] < self.m:
                continue
            if param.shape[dim] % self.m:
                raise InputError(
                    f"method n-m: {name}: expected inputs that {self.m} divides, got {param.shape[dim]}; "
                    f"choose an M that does"
                )
            self.params[name] = (param, dim)
        if not self.params:
            raise InputError(f"method n-m: expected layers with at least {self.m} inputs, got none")
        self._trained: dict[str, tuple[Tensor, Tensor]] = {}  # what is trained, and which of it is seen

    def begin(self, training: bool) -> None:
        """Show the largest alone."""
        with torch.no_grad():
            for name, (param, dim) in self.params.items():
                seen = self._mask(param, dim)
                self._trained[name] = param.detach().clone(), seen
                param.mul_(seen)

    def end(self, scale: float | None) -> None:
        """The gradients of what was seen go to all weights; what was not seen decays."""
        with torch.no_grad():
            for name, (param, _) in self.params.items():
                trained, seen = self._trained.pop(name)
                param.copy_(trained)
                if scale is not None and param.grad is not None:
                    param.grad.add_(trained * ~seen, alpha=scale * _DECAY)

    def finish(self) -> None:
        """What is not among the largest is zero."""
        with torch.no_grad():
            for param, dim in self.params.values():
                param.mul_(self._mask(param, dim))

    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        """Bool, shaped as the weight: the N largest of every M."""
        rows = weight.detach().abs().movedim(dim, -1)
        groups = rows.reshape(-1, self.m)
        largest = groups.topk(self.n, dim=1, sorted=False).indices
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, largest, True)
        return kept.view(rows.shape).movedim(-1, dim)


def parse_n_m(text: str) -> tuple[int, int]:
    """(2, 4) from "2:4".

    Raises:
        InputError: not two whole numbers, or N not in 1..M-1.
    """
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) < int(parts[1]):
        raise InputError(f"n_m: expected N:M with 1 <= N < M, such as 2:4, got {text}")
    return int(parts[0]), int(parts[1])
