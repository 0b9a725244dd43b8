"""A value of a program as an affine function of hidden values, and operators applied to it.

The operator itself is run on the coefficients, each column a sample of a batch, so that no operator is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.certify.network import Affine, compact

_ROWS = 3  # with which it is seen whether an operator keeps samples apart


class MixesSamplesError(Exception):
    """An operator that does not work on each sample by itself."""


class RowCount:
    """Stands for the number of samples among an operator's arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """`sum_j sum_i parts[j][i] * v_j[i] + bias`: `parts[j]` `(n_j, *shape)`, `bias` `(1, *shape)`; float64."""

    parts: Mapping[int, Tensor]
    bias: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.bias.shape[1:])

    def affine(self) -> Affine:
        """The same as matrices, flat."""
        weights = {j: compact(part.flatten(1).T.numpy()) for j, part in self.parts.items()}
        return Affine(weights, self.bias.flatten().numpy().copy())


def variable(j: int, shape: Sequence[int], scale: Tensor | None = None) -> Form:
    """Value `j` itself, in a shape; times `scale` where one is given."""
    n = int(torch.Size(shape).numel())
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return Form({j: eye}, torch.zeros(1, *shape, dtype=torch.float64))


def mapped(call: Callable[[Sequence[Tensor]], Any], forms: Sequence[Form]) -> Form:
    """What an operator makes of forms of which it is an affine function.

    Raises:
        MixesSamplesError: it does not keep the samples of a batch apart.
    """
    zeros = [torch.zeros(_ROWS, *form.shape, dtype=torch.float64) for form in forms]
    zero = _rows(call(zeros), _ROWS)[:1]
    bias = _rows(call([form.bias for form in forms]), 1)
    parts = {}
    for j in dict.fromkeys(j for form in forms for j in form.parts):
        n = next(len(form.parts[j]) for form in forms if j in form.parts)
        given = [form.parts[j] if j in form.parts else form.bias.new_zeros(n, *form.shape) for form in forms]
        parts[j] = _rows(call(given), n) - zero
    return Form(parts, bias)


def _rows(result: Any, n: int) -> Tensor:
    if not isinstance(result, Tensor) or result.dim() == 0 or len(result) != n:
        raise MixesSamplesError
    return result
