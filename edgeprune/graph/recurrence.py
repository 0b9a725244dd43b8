"""Recurrent operators while a model is exported: PyTorch unrolls them over time, only to learn the results' shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._decomp.decompositions  # registers the unrolled forms, which are to be replaced
from torch import Tensor

_aten = torch.ops.aten


@contextmanager
def not_unrolled() -> Iterator[None]:
    """Inside, recurrent operators on fake tensors give empty results of the right shapes.

    An export of 1000 time steps is as fast as one of 10 then. Real tensors are not concerned.
    """
    shapes: dict[Any, Callable[..., Any]] = {
        _aten.lstm.input: _lstm,
        _aten.gru.input: _one_state,
        _aten.rnn_tanh.input: _one_state,
        _aten.rnn_relu.input: _one_state,
    }
    unrolled = {operator: dict(operator.py_kernels) for operator in shapes}
    try:
        for operator, shape_of in shapes.items():
            _register(operator, dict.fromkeys(unrolled[operator], shape_of))
        yield
    finally:
        for operator, kernels in unrolled.items():
            _register(operator, kernels)


def _register(operator: Any, kernels: dict[Any, Callable[..., Any]]) -> None:
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()


def _lstm(x: Tensor, states: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = states
    return _steps(x, hidden, rest), hidden.new_empty(hidden.shape), cell.new_empty(cell.shape)


def _one_state(x: Tensor, hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _steps(x, hidden, rest), hidden.new_empty(hidden.shape)


def _steps(x: Tensor, hidden: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """The outputs of all steps; `rest` is `(params, has_biases, num_layers, dropout, train, bidirectional, ...)`."""
    bidirectional = rest[5]
    return x.new_empty((*x.shape[:-1], hidden.shape[-1] * (2 if bidirectional else 1)))
