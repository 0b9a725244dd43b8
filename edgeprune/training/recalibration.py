"""Batch norm's running statistics, estimated again for weights that have changed, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeprune.data import fed, order, prepared, read
from edgeprune.data.ranks import ALONE, Ranks
from edgeprune.errors import InputError
from edgeprune.records import DataSource, Normalization
from edgeprune.training.batchnorm import BatchNormCall, batch_norm_call
from edgeprune.training.placement import device_of, float_type, in_eval


def recalibrate(  # noqa: PLR0913 - what is estimated, and on how much
    module: nn.Module,
    data: DataSource,
    normalization: Normalization,
    *,
    n_batches: int = 32,
    batch_size: int = 128,
    seed: int = 0,
    ranks: Ranks = ALONE,
) -> int:
    """Set the running mean and variance of every batch norm to their mean over training batches, in place.

    After a cut the values that reach a batch norm are spread otherwise than its statistics say, which costs accuracy
    that no weight is to blame for. Every batch norm normalises by each batch's own statistics meanwhile, so that those
    behind it see what they will see; dropout stays off. A module's mode and `num_batches_tracked` stay as they are.

    Args:
        module: takes the data's inputs `(batch, ...)`, normalised; an nn.Module or an exported graph.
        n_batches: at most so many batches of `batch_size` are taken of the training split, shuffled by `seed`.
        ranks: the processes among which the batches are shared out; each calls this and has the same in the end.

    Returns:
        How many pairs of statistics were estimated; 0 for a network without batch norm, which is left alone.

    Raises:
        InputError: `n_batches` or `batch_size` is less than 1, or the inputs give statistics that are not finite.
    """
    if n_batches < 1:
        raise InputError(f"recalibration: expected at least 1 batch, got {n_batches}")
    device, dtype = device_of(module), float_type(module)
    chosen = order(len(data.train), batch_size, shuffle=True, seed=seed)[:n_batches]  # type: ignore[arg-type]
    own = ranks.share.in_turn(chosen)
    # Where none falls to this process, one that does not count tells what there is to be estimated.
    with in_eval(module), torch.no_grad(), _Estimating() as estimating:
        for x, _ in read(data.train, own or chosen[:1]):
            fed(module, prepared(x, normalization, device, dtype))
            if not estimating.found:
                break
    for statistics in estimating.found.values():
        statistics.add_up(ranks, counts=bool(own))
    for number, statistics in enumerate(estimating.found.values()):
        if not (statistics.mean.isfinite().all() and statistics.var.isfinite().all()):
            raise InputError(f"recalibration: expected finite inputs of batch norm {number}, got NaN or infinity")
    for statistics in estimating.found.values():
        statistics.put()
    return len(estimating.found)


@dataclass(slots=True, eq=False)
class _Statistics:
    """The sums over `n_calls` calls of a batch norm, beside the buffers that their means are for."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    var: Tensor
    n_calls: int = 0

    def add_up(self, ranks: Ranks, counts: bool) -> None:
        """Take the sums over the calls of all processes; those of this one only where it `counts`."""
        if ranks.share.n_ranks == 1:
            return
        sums = torch.stack([self.mean, self.var]).double()
        calls = torch.tensor(self.n_calls if counts else 0, dtype=torch.float64)
        total = ranks.summed(sums if counts else torch.zeros_like(sums))
        self.mean, self.var = total.to(self.mean.dtype)
        self.n_calls = int(ranks.summed(calls))

    def put(self) -> None:
        """Write the means into the network."""
        self.running_mean.copy_(self.mean / self.n_calls)
        self.running_var.copy_(self.var / self.n_calls)


class _Estimating(TorchFunctionMode):
    """While it is entered, batch norms with running statistics go by each batch's own, and theirs are summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, _Statistics] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = batch_norm_call(func, args, kwargs or {})
        if call is None or call.running_mean is None or call.running_var is None:
            return func(*args, **(kwargs or {}))
        return self._estimated(call, call.running_mean, call.running_var)

    def _estimated(self, call: BatchNormCall, running_mean: Tensor, running_var: Tensor) -> Tensor:
        mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)
        # A momentum of 1 leaves the batch's own mean and unbiased variance.
        y = F.batch_norm(call.x, mean, var, call.weight, call.bias, True, 1.0, call.eps)
        new = _Statistics(running_mean, running_var, torch.zeros_like(mean), torch.zeros_like(var))
        statistics = self.found.setdefault(id(running_mean), new)
        statistics.mean += mean
        statistics.var += var
        statistics.n_calls += 1
        return y
