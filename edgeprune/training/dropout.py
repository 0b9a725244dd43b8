"""Dropout of a batch that several processes share: each drops of its samples what one process would drop of them.

Each of them draws for the whole batch, from random numbers that are the same on all, and takes the rows that are its
own. A mode that watches the calls needs no other modules, and sees exported graphs too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeprune.graph.binding import bind
from edgeprune.graph.call import operator_name
from edgeprune.training.placement import random_state, seeded, set_random_state

_NAMES = {"input": 0, "p": 1, "training": 2, "train": 2, "inplace": 3}
_IN_PLACE = {torch.dropout_, torch.feature_dropout_, torch.ops.aten.dropout_.default}
_FUNCTIONS = _IN_PLACE | {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout,
    torch.ops.aten.dropout.default, torch.ops.aten.feature_dropout.default,
}  # fmt: skip


class Drawing:
    """Random numbers beside the process's own: those that a process which trains alone has, by the same seed.

    `state` is where they have come to, uint8 `(n_bytes,)`.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        with seeded(seed, 0, device):
            self.state = random_state(device)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, PyTorch draws from these."""
        own = random_state(self._device)
        set_random_state(self.state, self._device)
        try:
            yield
        finally:
            self.state = random_state(self._device)
            set_random_state(own, self._device)


class WholeDropout(TorchFunctionMode):
    """While it is entered, dropout takes of what is drawn for `n_all` samples the rows of the `n_own` from `start` on.

    Where the first dim of what is dropped from holds no whole number of rows for each sample, it draws as it would.
    """

    def __init__(self, drawing: Drawing, start: int, n_own: int, n_all: int) -> None:
        super().__init__()
        self._drawing, self._start, self._n_own, self._n_all = drawing, start, n_own, n_all

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(enumerate(args)) | {_NAMES.get(name, name): value for name, value in (kwargs or {}).items()}
        if func not in _FUNCTIONS or not given.get(2, True) or not self._has_rows(given[0]):
            return func(*args, **(kwargs or {}))
        x, kept = given[0], self._kept(func, given[0], given.get(1, 0.5))
        return x.mul_(kept) if func in _IN_PLACE or given.get(3, False) else x * kept

    def _has_rows(self, x: Tensor) -> bool:
        return x.dim() > 1 and len(x) > 0 and len(x) % self._n_own == 0

    def _kept(self, func: Any, x: Tensor, p: float) -> Tensor:
        """What `x` `(n_own * k, ...)` is multiplied with, of the same shape: 0, or 1 / (1 - p)."""
        n_rows = len(x) // self._n_own
        with self._drawing.used():
            whole = func(_ones_like(x, n_rows * self._n_all), p, True)
        return whole[n_rows * self._start :][: len(x)]


def drawn_apart(graph: fx.Graph) -> tuple[str, ...]:
    """The operators of an exported graph that draw at random while it trains, other than dropout, by name."""
    tag = torch.Tag.nondeterministic_seeded
    drawing = (node for node in graph.nodes if node.op == "call_function" and tag in getattr(node.target, "tags", ()))
    return tuple(dict.fromkeys(operator_name(node.target) for node in drawing if _draws_apart(node)))


def _draws_apart(node: fx.Node) -> bool:
    call = bind(node, lambda value: value)
    # Attention and recurrent layers say how much they drop.
    return node.target not in _FUNCTIONS and call.get("dropout_p") != 0.0 and call.get("dropout") != 0.0


def _ones_like(x: Tensor, n: int) -> Tensor:
    """Ones `(n, ...)` that lie in memory as `x` does, in which order they are drawn."""
    places = sorted(range(x.dim()), key=lambda dim: (x.stride(dim), -dim), reverse=True)
    sizes = [n, *x.shape[1:]]
    laid_out = torch.ones([sizes[dim] for dim in places], dtype=x.dtype, device=x.device)
    return laid_out.permute([places.index(dim) for dim in range(x.dim())])
